"""Progress while a clip is made, and an end to it from another thread."""

import threading

import ltx2rt


def show(report: ltx2rt.Progress) -> None:
    left = "" if report.eta_s is None else f", {report.eta_s:.0f} s left"
    print(f"{report.stage}: {report.step} of {report.total}{left}")


job = ltx2rt.Job(on_progress=show)
impatient = threading.Timer(60.0, job.cancel.set)
impatient.start()
with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle")) as pipe:
    try:
        pipe(prompt="A ship leaves the harbour.", job=job).save("ship.mp4")
        print({stage: round(seconds, 1) for stage, seconds in job.timings_s.items()})
    except ltx2rt.Cancelled as reason:
        print(reason)
    finally:
        impatient.cancel()
