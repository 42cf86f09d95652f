"""What a job does when a process of it dies, or when the disk is full."""

import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from lt_detectron2.engine.stop import StopRequested
from lt_detectron2.errors import CheckpointError, UserError
from tests.engine.toy_jobs import CONTEXT, TIMEOUT, launch_forked, launch_pair, start
from tests.engine.toy_training import Interruption, config, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy_data")
    config(folder, folder)  # makes the data set
    return folder


# ---- processes that die


def train_until(folder, data, what, rank):
    train(config(folder, data), interruption=Interruption(3, what, rank=rank))


def test_killed_process_ends_the_job(tmp_path, data, monkeypatch):
    """SIGKILL of one process ends all within a minute, with a sentence that says what happened."""
    begin = time.monotonic()
    with pytest.raises(UserError, match="process 1 of 2 was ended by SIGKILL.* go on .*--resume"):
        launch_pair(monkeypatch, train_until, tmp_path, data, signal.SIGKILL, 1)
    assert time.monotonic() - begin < TIMEOUT


def test_traceback_is_of_the_process_that_failed(tmp_path, data, monkeypatch):
    """What the first process raised is shown, and not that its partner lost the connection."""
    begin = time.monotonic()
    with pytest.raises(Exception, match="process 1 of 2 raised:(.|\\n)*ZeroDivisionError: a bug"):
        launch_pair(monkeypatch, train_until, tmp_path, data, ZeroDivisionError("a bug"), 1)
    assert time.monotonic() - begin < TIMEOUT


@pytest.mark.reliability
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_is_asked_to_stop(tmp_path, data, monkeypatch, rank):
    """SIGTERM to any one process stops all after the same step, with a checkpoint."""
    with pytest.raises(StopRequested) as stopped:
        launch_pair(monkeypatch, train_until, tmp_path, data, signal.SIGTERM, rank)
    assert stopped.value.code == 143
    assert [file.name for file in tmp_path.glob("*.pth")] == ["model_0000004.pth"]


@pytest.mark.reliability
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_any_process_dies_of_anything(tmp_path, data, monkeypatch, number, rank):
    """Whichever process dies of whichever signal, the job ends within a minute and says so."""
    begin = time.monotonic()
    with pytest.raises(Exception, match="process|Process"):
        launch_pair(monkeypatch, train_until, tmp_path, data, number, rank)
    assert time.monotonic() - begin < TIMEOUT


def train_on_a_machine(machine, url, log, *args):
    """What a machine's part of the job ends with."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            launch_forked(monkeypatch, train_until, *args, machine=(2, machine, url))
        except BaseException as error:
            log.send(f"{type(error).__name__}: {error}")


@pytest.mark.reliability
@pytest.mark.parametrize("machine", [0, 1])
def test_process_of_another_machine_dies(tmp_path, data, machine):
    """SIGKILL of a process ends the job on the other machine, too, within a minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    begin = time.monotonic()
    ends = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
    for rank, (_, log) in enumerate(ends):
        start(train_on_a_machine, rank, url, log, tmp_path, data, signal.SIGKILL, machine)
    assert all(receiver.poll(TIMEOUT) for receiver, _ in ends)
    messages = [receiver.recv() for receiver, _ in ends]
    assert time.monotonic() - begin < TIMEOUT
    assert messages[machine].startswith("UserError: process 0 of 1 was ended by SIGKILL")
    assert "process 0 of 1" in messages[1 - machine]  # which lost its partner


# ---- a full disk


def train_with_little_space(folder, data, log):
    """The disk fills up after the first checkpoint; here it is the size of files that is bound."""
    train(config(folder, data, "SOLVER.CHECKPOINT_PERIOD", "5", "SOLVER.MAX_ITER", "5"))
    size = Path(folder, "model_final.pth").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    try:
        train(config(folder, data, "SOLVER.CHECKPOINT_PERIOD", "5"), resume=True)
    except CheckpointError as error:
        log.send(str(error))


def test_full_disk(tmp_path, data, caplog):
    """A checkpoint that finds no space is reported; the one before stays, and no part of it."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = start(train_with_little_space, tmp_path, data, sender)
    assert receiver.poll(TIMEOUT)
    message = receiver.recv()
    process.join()
    assert "model_final.pth could not be written (File too large)" in message
    assert "model_final.pth is kept" in message
    assert not list(tmp_path.glob("*.part"))
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [
        "model_0000004.pth",
        "model_final.pth",
    ]
    # Training went on after the first failure, to the end, and resumes with space.
    assert train(config(tmp_path, data), resume=True).start_iter == 5
    assert (tmp_path / "model_final.pth").stat().st_size > 0


ROOM = 16 * 1024
"""Enough for small files, not for a checkpoint."""


@pytest.mark.reliability
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_full_file_system(tmp_path, data):
    """The same with a file system that has no room for a checkpoint."""
    import subprocess

    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount).returncode:
        pytest.skip("cannot mount")
    try:
        train(config(folder, data, "SOLVER.MAX_ITER", "5"))
        with pytest.raises(OSError), open(folder / "ballast", "wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
        os.truncate(folder / "ballast", (folder / "ballast").stat().st_size - ROOM)
        with pytest.raises(CheckpointError, match="No space left on device.*is kept"):
            train(config(folder, data), resume=True)
        (folder / "ballast").unlink()
        assert train(config(folder, data), resume=True).start_iter == 5
    finally:
        subprocess.run(["umount", str(folder)], check=True)
