"""The log of codes: what goes in comes out; what is damaged is said and left out; what is whole is never touched."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vqclip.codelog import CodeLog, CodesError


def grids(steps, h=3, w=5, k=32, seed=0):
    return np.random.default_rng(seed).integers(0, k, (steps, h, w))


def filled(path, codes, k=32):
    log = CodeLog.create(path, *codes.shape[1:], k)
    for step, grid in enumerate(codes):
        log.append(step, grid)
    return log


@given(k=st.integers(1, 100_000), data=st.data())
def test_what_goes_in_comes_out(k, data, tmp_path_factory):
    shape = data.draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=6))
    codes = data.draw(arrays.arrays(np.int64, shape, elements=st.integers(0, k - 1)))
    path = tmp_path_factory.mktemp("log") / "codes"
    filled(path, codes, k)
    log = CodeLog(path)
    assert len(log) == len(codes) and (log.h, log.w, log.k) == (*shape[1:], k)
    assert np.array_equal(log.read(), codes) and log.read().dtype == np.int64
    first = data.draw(st.integers(0, len(codes) - 1))
    last = data.draw(st.integers(first, len(codes) - 1))
    assert np.array_equal(log.read(first, last), codes[first : last + 1])


@pytest.mark.parametrize("k, width", [(1, 2), (65536, 2), (65537, 4), (1 << 20, 4)])
def test_large_codebooks_take_four_bytes_a_code(tmp_path, k, width):
    codes = np.full((2, 3, 5), k - 1)
    log = filled(tmp_path / "codes", codes, k)
    assert log.record == 3 * 5 * width + 8
    assert np.array_equal(CodeLog(log.path).read(), codes)


def test_what_is_appended_is_there_at_once_for_another_reader(tmp_path):
    codes = grids(3)
    log = filled(tmp_path / "codes", codes[:2])
    reader = CodeLog(log.path)
    log.append(2, codes[2])
    assert len(reader) == 3 and np.array_equal(reader.read(2), codes[2:])


def test_truncate_forgets_the_end_and_never_adds(tmp_path):
    codes = grids(6)
    log = filled(tmp_path / "codes", codes)
    log.truncate(4)
    assert len(log) == 4 and np.array_equal(log.read(), codes[:4])
    log.truncate(9)
    assert len(log) == 4
    log.append(4, codes[5])
    log.sync()
    assert np.array_equal(log.read(4), codes[5:])
    log.truncate(0)
    assert len(log) == 0


@pytest.mark.parametrize(
    "first, last, words",
    [(0, 5, "steps 0 to 5"), (5, None, "5 to 4"), (3, 2, "3 to 2"), (-1, 2, "-1 to 2"), (0, -1, "0 to -1")],
)
def test_spans_that_are_not_there(tmp_path, first, last, words):
    log = filled(tmp_path / "codes", grids(5))
    with pytest.raises(CodesError, match=f"{words} are not there: the session has 0 to 4"):
        log.read(first, last)


def test_an_empty_log_says_so(tmp_path):
    with pytest.raises(CodesError, match="has no steps yet"):
        CodeLog.create(tmp_path / "codes", 2, 2, 8).read()


def test_nothing_is_overwritten_and_steps_come_in_order(tmp_path):
    log = filled(tmp_path / "codes", grids(2))
    with pytest.raises(FileExistsError):
        CodeLog.create(log.path, 3, 5, 32)
    for step in (0, 1, 3):
        with pytest.raises(CodesError, match=f"step {step} cannot follow 2 steps"):
            log.append(step, grids(1)[0])
    with pytest.raises(CodesError, match=r"codes of \(5, 3\) do not fit"):
        log.append(2, grids(1)[0].T)
    assert np.array_equal(log.read(), grids(2))


@pytest.mark.parametrize("extra", [1, 20, 37])  # of 38 bytes
def test_a_torn_end_is_left_out_with_a_warning_and_painted_over(tmp_path, extra):
    codes = grids(4)
    log = filled(tmp_path / "codes", codes)
    os.truncate(log.path, log.path.stat().st_size - log.record + extra)
    whole = log.path.read_bytes()
    with pytest.warns(UserWarning, match="was not written to its end; it is dropped"):
        torn = CodeLog(log.path)
    assert log.path.read_bytes() == whole  # it may be somebody else who is just writing there
    assert len(torn) == 3 and np.array_equal(torn.read(), codes[:3])
    torn.append(3, codes[3])
    assert len(torn) == 4 and np.array_equal(CodeLog(log.path).read(), codes)


def test_every_flipped_byte_is_found(tmp_path):
    codes = grids(3)
    log = filled(tmp_path / "codes", codes)
    good = log.path.read_bytes()
    header = len(good) - 3 * log.record
    for at in range(len(good)):
        log.path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        if at < header:
            with pytest.raises(CodesError, match="not a file of codes"):
                CodeLog(log.path)
        else:
            step = (at - header) // log.record
            around = ["use first=1 to", "use last=0 or first=2 to", "use last=1 to"][step]
            with pytest.raises(CodesError, match=f"step {step} in .* is damaged: {around}"):
                CodeLog(log.path).read()
            for first, last in ((0, step - 1), (step + 1, 2)):  # as it says
                if first <= last:
                    assert np.array_equal(CodeLog(log.path).read(first, last), codes[first : last + 1])


@pytest.mark.parametrize("content", [b"", b"vqclip", b"<!DOCTYPE html>" * 10])
def test_what_is_no_log(tmp_path, content):
    (tmp_path / "codes").write_bytes(content)
    with pytest.raises(CodesError, match="cannot be read|not a file of codes"):
        CodeLog(tmp_path / "codes")


def test_a_missing_log(tmp_path):
    with pytest.raises(CodesError, match="cannot be read: no step of this session is left"):
        CodeLog(tmp_path / "codes")


@pytest.mark.parametrize("room", [0, 1, 17, 37])  # bytes of the last record of 38
def test_a_full_disk_keeps_what_is_there(tmp_path, room, full_disk):
    codes = grids(5)
    log = filled(tmp_path / "codes", codes[:4])
    with full_disk(log.path.stat().st_size + room), pytest.raises(OSError) as caught:
        log.append(4, codes[4])
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert len(log) == 4 and np.array_equal(log.read(), codes[:4])
    log.append(4, codes[4])
    assert np.array_equal(log.read(), codes)
