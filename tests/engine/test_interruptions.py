"""What a job does when a process of it dies, or when the disk is full."""

import errno
import logging
import os
import pickle
import re
import resource
import signal
import socket
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

import train_net
from lt_detectron2.engine.checkpoint import LAST_FILE
from lt_detectron2.engine.full_disk import explaining_full_disk, naming
from lt_detectron2.engine.stop import StopRequested
from lt_detectron2.engine.supervise import _raise_what_happened
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import CheckpointError, UserError
from lt_detectron2.files import replacing
from tests.engine.toy_jobs import CONTEXT, TIMEOUT, launch_forked, launch_pair, start
from tests.engine.toy_training import DATASET, Interruption, config, train


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


def train_with_a_long_evaluation(folder, data, asked):
    """The main process computes AP while the other one has done its part; some are asked to end."""

    def test(cls, cfg, model, evaluators=None):
        is_main = comm.is_main_process()
        if not is_main and asked is None:
            os.kill(os.getpid(), signal.SIGTERM)
        if is_main:
            time.sleep(2)  # the other waits for this process now
            if asked is not None:
                os.kill(asked, signal.SIGTERM)
            time.sleep(TIMEOUT)
        return {}

    LongTailTrainer.test = classmethod(test)
    train(config(folder, data, "DATASETS.TEST", f"('{DATASET}',)", "TEST.EVAL_PERIOD", "4"))


@pytest.mark.parametrize("all_are_asked", [True, False])
def test_stop_while_others_wait(tmp_path, data, monkeypatch, all_are_asked):
    """SIGTERM while one process evaluates ends the job as asked, whoever waits or gets it."""
    begin = time.monotonic()
    asked = os.getpid() if all_are_asked else None
    with pytest.raises(StopRequested) as stopped:
        launch_pair(monkeypatch, train_with_a_long_evaluation, tmp_path, data, asked)
    assert stopped.value.code == 143 and time.monotonic() - begin < TIMEOUT
    assert [file.name for file in tmp_path.glob("*.pth")] == ["model_0000003.pth"]


@pytest.mark.parametrize(
    "error, expected",
    [
        (CheckpointError("the disk is full"), CheckpointError),
        (RuntimeError("Connection closed by peer"), StopRequested),
    ],
)
def test_what_a_stop_brings_about_is_no_error(tmp_path, error, expected):
    """Of a job that stops, only an error that explains itself is shown, not a lost connection."""
    try:
        raise error
    except Exception:
        file = tmp_path / "error"
        file.write_bytes(pickle.dumps(traceback.format_exc()))
    files = [str(file), str(tmp_path / "none")]
    context = SimpleNamespace(error_files=files, processes=[SimpleNamespace(pid=1)] * 2)
    with pytest.raises((UserError, StopRequested)) as raised:
        _raise_what_happened(context, [1, 143], [signal.SIGTERM])
    assert isinstance(raised.value, StopRequested) == (expected is StopRequested)


def test_no_evaluation_after_an_error(tmp_path, data, monkeypatch):
    """An error in the last step is not held back by an evaluation, in which others would miss."""
    monkeypatch.setattr(LongTailTrainer, "test", lambda *arguments: pytest.fail("it evaluated"))
    cfg = config(tmp_path, data, "DATASETS.TEST", f"('{DATASET}',)", "SOLVER.MAX_ITER", "3")
    with pytest.raises(ZeroDivisionError):
        train(cfg, interruption=Interruption(2, ZeroDivisionError("a bug")))


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
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("lt_detectron2").addHandler(handler)
    try:
        train(config(folder, data, "SOLVER.CHECKPOINT_PERIOD", "5"), resume=True)
    except CheckpointError as error:
        log.send((str(error), logged))


def test_full_disk(tmp_path, data):
    """A checkpoint that finds no space is reported; the one before stays, and no part of it."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = start(train_with_little_space, tmp_path, data, sender)
    assert receiver.poll(TIMEOUT)
    message, logged = receiver.recv()
    process.join()
    failures = [line for line in logged if "Training goes on" in line]
    assert [re.search(r"model_\d+.pth could not", line)[0] for line in failures] == [
        f"model_{step:07d}.pth could not" for step in (9, 14, 19)
    ]
    assert all("the next attempt is after 5 iterations" in line for line in failures)
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


def train_by_command_line(folder, data):
    cfg = config(folder / "run", data, "SOLVER.CHECKPOINT_PERIOD", "8", "SOLVER.MAX_ITER", "40")
    file = folder / f"{comm.get_rank()}.yaml"
    file.write_text(cfg.dump())
    train_net.main(default_argument_parser().parse_args(["--config-file", str(file)]))


def run_program(log, processes, *args):
    """What train_net.py would end with."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            launch_forked(monkeypatch, train_by_command_line, *args, processes=processes)
            log.send("")
        except Exception as error:
            log.send(f"{type(error).__name__}: {error}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
@pytest.mark.parametrize("processes", [1, 2])
def test_no_space_for_other_files(tmp_path, data, processes):
    """Any file that finds no space ends all processes with its name, and what to go on from."""
    run = tmp_path / "run"
    run.mkdir()
    metrics = run / "metrics.json"
    metrics.symlink_to("/dev/full")
    receiver, sender = CONTEXT.Pipe(duplex=False)
    start(run_program, sender, processes, tmp_path, data)
    assert receiver.poll(TIMEOUT)
    assert receiver.recv() == (
        f"UserError: {metrics} could not be written (No space left on device), and "
        f"{run}/model_0000015.pth is kept: make room, and go on with --resume"
    )
    metrics.unlink()
    assert train(config(run, data), resume=True).start_iter == 16


def full_disk_message(folder, saves=False, **run):
    with pytest.raises(UserError) as caught, explaining_full_disk(str(folder), **run):
        if saves:
            with replacing(folder / LAST_FILE) as file:
                file.write("model_0000004.pth")
        raise OSError(errno.ENOSPC, "full")
    return str(caught.value)


def test_advice_where_the_disk_is_full(tmp_path):
    """Nobody is told to resume an evaluation, or a training whose checkpoint is not its own."""
    (tmp_path / LAST_FILE).write_text("model_final.pth")  # of an earlier training
    other = ", before the first checkpoint: make room, or choose another OUTPUT_DIR"
    assert full_disk_message(tmp_path).endswith(other)
    assert full_disk_message(tmp_path / "new").endswith(other)
    assert full_disk_message(tmp_path, trains=False).endswith("and start again")
    own = "/{} is kept: make room, and go on with --resume"
    assert full_disk_message(tmp_path, resumes=True).endswith(own.format("model_final.pth"))
    assert full_disk_message(tmp_path, saves=True).endswith(own.format("model_0000004.pth"))


def test_only_a_full_disk_is_blamed_on_a_file():
    with pytest.raises(ConnectionRefusedError) as caught, naming("metrics.json"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    assert caught.value.filename is None
    with pytest.raises(OSError) as caught, naming("metrics.json"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == "metrics.json"


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
