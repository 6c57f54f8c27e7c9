"""Noise of a GPU, against the vectors of Philox's authors and numbers that GPUs have printed."""

from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import OptionError
from ltx2rt.sampling.gpu_noise import GPUS, GpuGenerator, make_generator, philox
from ltx2rt.sampling.noise import TorchGenerator


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123, kat_vectors; counter and key as their 32-bit words, the lowest first
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox(counter: tuple[int, ...], key: tuple[int, int], words: str) -> None:
    thread = np.array([counter[2] | counter[3] << 32], np.uint64)
    found = philox(counter[0] | counter[1] << 32, thread, key[0] | key[1] << 32)
    assert " ".join(f"{int(word[0]):08x}" for word in found) == words


def test_what_gpus_print() -> None:
    """`torch.manual_seed(42); torch.randn(4, device="cuda")`, twice."""
    for name in GPUS:
        generator = make_generator(42, name)
        first, second = (generator.randn((4,), "float32") for _ in range(2))
        np.testing.assert_allclose(first, [0.1940, 2.1614, -0.1721, 0.8491], atol=6e-5)
        np.testing.assert_allclose(second, [0.1391, -0.1082, -0.7174, 0.7566], atol=6e-5)


def test_threads_take_turns() -> None:
    """More values than threads: each thread has four in its turn, one grid apart."""
    small, grid = GpuGenerator(7, 1, 512), 512
    values = small.randn((4 * grid + 100,), "float32")
    assert small.state[2] == 8  # two counters
    for number, thread in ((0, 5), (1, 99)):
        w = [int(x[0]) for x in philox(number, np.array([thread], np.uint64), 7)]
        uniform, angle = (w[0] + 0.5) / 2**32, 2 * np.pi * (w[1] + 0.5) / 2**32
        radius = np.sqrt(-2 * np.log(uniform))
        got = values[4 * grid * number + thread]
        assert got == pytest.approx(radius * np.sin(angle), abs=2e-6)
        if number == 0:
            got = values[grid + thread]
            assert got == pytest.approx(radius * np.cos(angle), abs=2e-6)
    again = GpuGenerator(7, 1, 512)
    again.randn((4,))
    one, other = again.copy(), make_generator(7, "1x512")
    other.state = again.state
    np.testing.assert_array_equal(one.randn((3, 5)), other.randn((3, 5)))
    large = make_generator(7, "h100").randn((300_000,), "float32")
    assert not np.array_equal(large, make_generator(7, "b200").randn((300_000,), "float32"))
    assert abs(large.mean()) < 0.01
    assert large.std() == pytest.approx(1, abs=0.01)


def test_other_types() -> None:
    exact, rounded = (make_generator(3, "h100").randn((999,), d) for d in ("float32", "bfloat16"))
    assert np.abs(exact - rounded).max() < 2**-8 * 4
    np.testing.assert_array_equal(rounded, make_generator(3, "h100").randn((999,)))
    generator = make_generator(3, "h100")
    double = generator.randn((1000,), "float64")
    w = [int(x[0]) for x in philox(0, np.array([11], np.uint64), 3)]
    uniform, angle = ((low ^ high << 21) + 0.5 for low, high in (w[:2], w[2:]))
    radius = np.sqrt(-2 * np.log(uniform / 2**53))
    assert double[11] == pytest.approx(radius * np.sin(2 * np.pi * angle / 2**53), rel=1e-12)
    with pytest.raises(OptionError, match="dtype='int8' is not one of"):
        generator.randn((1,), "int8")
    with pytest.raises(OptionError, match="not the state of a random generator of this GPU"):
        generator.state = TorchGenerator(3).state
    with pytest.raises(OptionError, match="not the state"):
        generator.state = make_generator(3, "b200").state


def test_what_noise_may_be_called() -> None:
    for noise in ("cpu", "H100", "rtx5090", "84x1536"):
        assert GenerationConfig(noise=noise).noise == noise
    for noise in ("gpu", "cuda", "132x0", "132x", "84x128", ""):
        with pytest.raises(OptionError, match=r"noise=.* is none of cpu, a100, .*132x2048"):
            GenerationConfig(noise=noise)
