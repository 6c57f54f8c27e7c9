"""A program of asyncio: the loop goes on while a clip is made and decoded."""

import asyncio

import ltx2rt


async def main() -> None:
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle")) as pipe:
        clip = await asyncio.to_thread(pipe, prompt="A kite over the dunes.")
        total = 0
        async for chunk in clip.async_frames():
            total += chunk.nbytes  # send it to somebody
        print(f"{total / 1e6:.1f} MB of frames")
        await asyncio.to_thread(clip.save, "kite.mp4")


asyncio.run(main())
