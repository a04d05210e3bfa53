"""Outputs appear complete or not at all: links, folders that cannot be written, disks that fill up, damage half-way."""

import errno
import os
import re
import stat
from functools import partial

import numpy as np
import pytest
from checkpoint_files import files_in, write_safetensors, write_sharded

import transmask as tm
from transmask.checkpoint import _staging, masks_file, plan_pruning, prune_checkpoint, run, write_masks
from transmask.checkpoint._abandoned import lock_part
from transmask.checkpoint._staging import Staging


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    rng = np.random.default_rng(0)
    write_safetensors(path, {name: rng.standard_normal((8, 8)) for name in ("a", "b", "c")})
    return path


def prune(model, output, **options):
    return prune_checkpoint(plan_pruning(model, "2:4"), output, **options)


def refuses(model, output, message, **options):
    """The plan and pruning fail with the same `message`, and no file has changed, no file or folder is new."""
    plan = plan_pruning(model, "2:4")
    before = everything_in(model.parent)
    said = []
    for function in (plan.check_outputs, partial(prune_checkpoint, plan)):
        with pytest.raises(tm.TransmaskError, match=re.escape(message)) as caught:
            function(output, **options)
        assert "\n" not in str(caught.value)
        assert everything_in(model.parent) == before
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def everything_in(folder):
    return sorted(folder.rglob("*")), files_in(folder)


def test_the_output_must_not_be_the_input(model, tmp_path):
    (tmp_path / "symlink.safetensors").symlink_to(model)
    (tmp_path / "hardlink.safetensors").hardlink_to(model)
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("m.safetensors", "symlink.safetensors", "hardlink.safetensors", "folder/m.safetensors"):
        refuses(model, tmp_path / name, "`output` must not be the input")
        refuses(model, tmp_path / "new.safetensors", "`masks` must not be the input", masks=tmp_path / name)


def test_the_input_may_be_a_link_too(model, tmp_path):
    (tmp_path / "symlink.safetensors").symlink_to(model)
    refuses(tmp_path / "symlink.safetensors", model, "`output` must not be the input")


def test_the_outputs_must_differ(model, tmp_path):
    refuses(
        model, tmp_path / "x.safetensors", "`output` must not be another output too", masks=tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/new.safetensors", "`output` must be in a folder that exists"),
        ("m.safetensors/new.safetensors", "`output` must be in a folder that exists"),
        ("new.npz", "`output` must end with '.safetensors' like the input"),
        ("new", "`output` must end with '.safetensors' like the input"),
        ("folder.safetensors", "which is a folder"),
        ("pipe.safetensors", "which is not a regular file"),
        ("x" * 300 + ".safetensors", "File name too long"),
    ],
)
def test_where_an_output_cannot_be(model, tmp_path, name, message):
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    refuses(model, tmp_path / name, message)
    assert stat.S_ISFIFO((tmp_path / "pipe.safetensors").stat().st_mode)


def test_a_device_is_not_replaced(model, tmp_path):
    (tmp_path / "null.safetensors").symlink_to("/dev/null")
    refuses(model, tmp_path / "null.safetensors", "`output` must be a file, got")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_an_existing_file_is_replaced_and_a_link_is_too_but_not_what_it_points_to(model, tmp_path):
    (tmp_path / "blob").write_text("of a cache")
    (tmp_path / "blob").chmod(0o640)
    for name in ("link", "masks"):
        (tmp_path / f"{name}.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "old.safetensors").write_text("old")
    prune(model, tmp_path / "link.safetensors", masks=tmp_path / "masks.safetensors")
    prune(model, tmp_path / "dangling.safetensors")
    prune(model, tmp_path / "old.safetensors")
    assert (tmp_path / "blob").read_text() == "of a cache"
    assert not (tmp_path / "nowhere").exists()
    assert stat.S_IMODE((tmp_path / "link.safetensors").stat().st_mode) == 0o640
    for name in ("link", "dangling"):
        assert not (tmp_path / f"{name}.safetensors").is_symlink()
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()


def test_a_new_file_has_the_usual_permissions(model, tmp_path):
    (tmp_path / "plain").touch()
    prune(model, tmp_path / "new.safetensors")
    assert (tmp_path / "new.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_what_replaces_a_file_gets_its_permissions(model, tmp_path, mode):
    seen = []

    def look(tensor, outcome):
        seen.extend(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in tmp_path.glob(".transmask-*"))

    for name in ("old.safetensors", "masks.safetensors"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(mode)
    prune(model, tmp_path / "old.safetensors", masks=tmp_path / "masks.safetensors", progress=look)
    for name in ("old.safetensors", "masks.safetensors"):
        assert (tmp_path / name).read_bytes() != b"old"
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    assert seen == [0] * 12  # private from the start: two files, looked at before and after each of three tensors


def test_an_empty_folder_keeps_its_permissions(tmp_path):
    index = write_sharded(tmp_path / "m", {"1.safetensors": {"a": np.eye(4)}})
    (tmp_path / "new").mkdir(0o700)
    prune(index, tmp_path / "new")
    assert (tmp_path / "new" / "1.safetensors").exists()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_shards_are_written_to_a_new_or_empty_folder_only(tmp_path):
    index = write_sharded(tmp_path / "m", {"1.safetensors": {"a": np.eye(4)}, "2.safetensors": {"b": np.eye(4)}})
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    for name in ("new", "empty"):
        prune(index, tmp_path / name)
        assert sorted(os.listdir(tmp_path / name)) == ["1.safetensors", "2.safetensors", index.name]
    before = everything_in(tmp_path)
    for name, message in (
        ("full", "`output` must be a new or empty folder for a sharded checkpoint"),
        ("m", "`output` must be a new or empty folder for a sharded checkpoint"),
        ("m/1.safetensors", "`output` must be a folder for a sharded checkpoint"),
        ("new.safetensors", "`output` must be a folder for a sharded checkpoint"),
    ):
        refuses(index, tmp_path / name, message)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("is_there", [False, True])
def test_masks_do_not_go_into_the_folder_of_new_shards(tmp_path, is_there):
    index = write_sharded(tmp_path / "m", {"1.safetensors": {"a": np.eye(4)}})
    if is_there:
        (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for folder in ("new", "link"):
        refuses(
            index,
            tmp_path / "new",
            "`masks` must not be in the output folder",
            masks=tmp_path / folder / "m.safetensors",
        )
    assert sorted(os.listdir(tmp_path)) == ["link", "m", *(["new"] if is_there else [])]
    prune(index, tmp_path / "new", masks=tmp_path / "new.masks.safetensors")
    assert (tmp_path / "new.masks.safetensors").exists()


def test_the_output_is_looked_at_before_the_masks(model, tmp_path):
    refuses(
        model, tmp_path / "new.npz", "`output` must end with '.safetensors'", masks=tmp_path / "no" / "m.safetensors"
    )


def test_an_argument_that_makes_the_run_pointless(model):
    with pytest.raises(tm.InvalidArgumentError, match="`output` must be given, got None"):
        prune(model, None)
    with pytest.raises(tm.InvalidArgumentError, match="`masks` must be given with apply=False, got None"):
        prune(model, None, apply=False)
    refuses(model, None, "`masks` must end with '.safetensors', got 'masks.npz'", masks="masks.npz", apply=False)
    for options in ({"output": 7}, {"output": "new.safetensors", "masks": 7}):
        refuses(model, message=f"`{list(options)[-1]}` must be a path, got 7 of type int", **options)


def test_a_name_that_the_masks_cannot_have_is_told_before_anything_is_written(tmp_path):
    np.savez(tmp_path / "m.npz", __metadata__=np.eye(4))
    message = "`masks` must have names that a safetensors file can hold, got '__metadata__'."
    refuses(tmp_path / "m.npz", tmp_path / "new.npz", message, masks=tmp_path / "masks.safetensors")


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_outputs_that_are_allowed_are_left_as_they_are_by_the_check(tmp_path, kind):
    model = write_sharded(tmp_path / "m", {"m.safetensors": {"a": np.eye(4)}})
    output, masks = tmp_path / "new", tmp_path / "masks.safetensors"
    if kind == "file":
        model, output = tmp_path / "m" / "m.safetensors", tmp_path / "new.safetensors"
        output.write_text("old")
    masks.write_text("old")
    before = everything_in(tmp_path)
    plan = plan_pruning(model, "2:4")
    for _ in range(2):  # a check takes no place for good
        plan.check_outputs(output, masks=masks)
        plan.check_outputs(None)
    assert everything_in(tmp_path) == before
    prune_checkpoint(plan, output, masks=masks)


class Disk:
    """Counts the calls of the functions that write, and lets one of them fail."""

    def __init__(self, monkeypatch, code):
        self.monkeypatch, self.code = monkeypatch, code
        self.calls, self.fails_at = 0, None
        self.wrap(os, "open")
        self.wrap(os, "fsync")
        self.wrap(_staging.Path, "mkdir")
        self.wrap(_staging.Path, "replace")

    def wrap(self, owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self.fails_at:
                raise OSError(self.code, os.strerror(self.code))
            return original(*arguments, **options)

        self.monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_whichever_call_fails_the_old_files_or_the_new_ones_are_there(tmp_path, monkeypatch, kind):
    tensors = {"a": np.arange(16.0).reshape(4, 4), "b": np.eye(4)}

    def run(folder, fails_at):
        """Prune in a folder of its own, with the given call failing; return the files before and after, and calls."""
        folder.mkdir()
        if kind == "file":
            model, output = folder / "m.safetensors", folder / "new.safetensors"
            write_safetensors(model, tensors)
            output.write_text("old")
        else:
            shards = {f"{name}.safetensors": {name: array} for name, array in tensors.items()}
            model, output = write_sharded(folder / "m", shards), folder / "new"
        plan = plan_pruning(model, "2:4")
        before = files_in(folder)
        with monkeypatch.context() as patch:
            disk = Disk(patch, errno.EIO)
            disk.fails_at = fails_at
            if fails_at is None:
                prune_checkpoint(plan, output, masks=folder / "masks.safetensors", threads=1)
            else:
                with pytest.raises(tm.CheckpointError, match="Input/output error") as caught:
                    prune_checkpoint(plan, output, masks=folder / "masks.safetensors", threads=1)
                untouched = "Nothing was written" in str(caught.value) or "where files can be" in str(caught.value)
                assert untouched == (files_in(folder) == before)
        return before, files_in(folder), disk.calls

    _, complete, n_calls = run(tmp_path / "complete", None)
    assert n_calls > 8
    unchanged = 0
    for fails_at in range(1, n_calls + 1):
        before, after, _ = run(tmp_path / str(fails_at), fails_at)
        # The masks are in place before the checkpoint is, so that the checkpoint tells that both are.
        assert after in (before, before | {"masks.safetensors": complete["masks.safetensors"]}, complete)
        unchanged += after == before
    assert unchanged > n_calls // 2


def test_a_disk_that_fills_up_while_a_tensor_is_written(model, tmp_path, monkeypatch):
    for suffix in (".safetensors", ".npz"):
        path = model
        if suffix == ".npz":
            path = tmp_path / "m.npz"
            np.savez(path, **{name: np.random.default_rng(0).standard_normal((64, 64)) for name in "abc"})
        plan = plan_pruning(path, "2:4")
        before = files_in(tmp_path)

        written = iter((None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))

        def fill(packer, mask, written=written):
            if error := next(written):
                raise error

        monkeypatch.setattr(masks_file.MaskPacker, "write", fill)
        message = r"could not write '.*masks\.safetensors' and '.*': No space left on device\. Nothing was written\."
        with pytest.raises(tm.CheckpointError, match=message):
            prune_checkpoint(plan, tmp_path / f"new{suffix}", masks=tmp_path / "masks.safetensors")
        assert files_in(tmp_path) == before


@pytest.mark.parametrize("when", ["begun", "done", "solving"])
def test_progress_that_fails_is_not_blamed_on_the_output(model, tmp_path, monkeypatch, when):
    def fail(*arguments, **options):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def show(tensor, outcome):
        if tensor.name == "b" and (outcome is not None) == (when == "done"):
            fail()

    if when == "solving":
        monkeypatch.setattr(run, "solve_array", fail)
        monkeypatch.setattr(run, "solve_each", fail)
    before = files_in(tmp_path)
    progress = None if when == "solving" else show
    with pytest.raises(BrokenPipeError):
        prune(model, tmp_path / "new.safetensors", masks=tmp_path / "masks.safetensors", progress=progress)
    assert files_in(tmp_path) == before


def test_an_interrupt_half_way_leaves_nothing(model, tmp_path):
    def interrupt(tensor, outcome):
        if tensor.name == "b":
            raise KeyboardInterrupt

    before = files_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "new.safetensors", masks=tmp_path / "masks.safetensors", progress=interrupt)
    assert files_in(tmp_path) == before


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(model, tmp_path):
    plan = plan_pruning(model, "2:4")
    model.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"m\.safetensors"):
        prune_checkpoint(plan, tmp_path / "new.safetensors")
    assert sorted(files_in(tmp_path)) == ["away"]


def test_the_temporary_file_lies_beside_the_final_one(tmp_path):
    with Staging([]) as staging:
        temporary = staging.file(tmp_path / "out.bin", "output")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".transmask-")
        assert not (tmp_path / "out.bin").exists()
        temporary.write_text("complete")
    assert files_in(tmp_path) == {"out.bin": b"complete"}


def test_write_masks_replaces_a_file_only_when_it_is_complete(tmp_path, monkeypatch):
    write_masks(tmp_path / "masks.safetensors", {"w": np.eye(2)}, "1:2")
    before = files_in(tmp_path)
    Disk(monkeypatch, errno.ENOSPC).fails_at = 2
    with pytest.raises(tm.CheckpointError, match="No space left on device"):
        write_masks(tmp_path / "masks.safetensors", {"w": np.eye(4)}, "1:4")
    assert files_in(tmp_path) == before


def abandoned(tmp_path, kind):
    """What a killed run leaves of `new.safetensors` or of the folder `new`, made by staging it and forgetting it."""
    staging = Staging([])
    final = tmp_path / ("new.safetensors" if kind == "file" else "new")
    temporary = getattr(staging, kind)(final, "output")
    if kind == "folder":
        (temporary / "1.safetensors").write_text("half")
    return final, temporary, staging


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_run_left_is_removed_by_the_next_with_the_same_output_alone(tmp_path, kind):
    final, temporary, staging = abandoned(tmp_path, kind)
    for lock in staging._locks:
        os.close(lock)  # as the system does when a process ends
    with Staging([]) as other:
        other.file(tmp_path / "other.safetensors", "output").write_text("other")
    assert temporary.exists()
    with Staging([]) as again:
        with pytest.warns(RuntimeWarning, match=rf"'{temporary}' was removed: .* while it wrote '{final}'"):
            getattr(again, kind)(final, "output")
        assert not temporary.exists()
    assert not list(tmp_path.glob(".transmask*"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_run_writes_stays(tmp_path, kind):
    _, temporary, staging = abandoned(tmp_path, kind)
    with Staging([]) as again:
        getattr(again, kind)(tmp_path / ("new.safetensors" if kind == "file" else "new"), "output")
        assert temporary.exists()
    for lock in staging._locks:
        os.close(lock)


def test_a_part_that_is_taken_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    taken = []

    def lock(path, *, wait):
        if not taken:
            taken.append(path)
            path.unlink()
            return os.open(os.devnull, os.O_RDONLY)
        return lock_part(path, wait=wait)

    monkeypatch.setattr("transmask.checkpoint._staging.lock_part", lock)
    with Staging([]) as staging:
        temporary = staging.file(tmp_path / "new.safetensors", "output")
        assert temporary not in taken
        temporary.write_text("whole")
    assert (tmp_path / "new.safetensors").read_text() == "whole"


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr("transmask.checkpoint._abandoned.fcntl", None)
    _, temporary, staging = abandoned(tmp_path, "file")
    assert staging._locks == []
    with Staging([]) as again:
        again.file(tmp_path / "new.safetensors", "output")
    assert temporary.exists()
