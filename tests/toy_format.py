"""A checkpoint format of one file and one row, as a contributor would add it: arrays as JSON."""

import json

import numpy as np

from transmask.checkpoint import Checkpoint, TensorInfo

SUFFIX = ".toy"


class ToyCheckpoint(Checkpoint):
    """A ``.toy`` file: a JSON object that maps names to nested lists."""

    suffix = SUFFIX

    def __init__(self, path):
        self.path = path
        self.files = (path,)
        self._arrays = {name: np.array(values) for name, values in json.loads(path.read_text()).items()}
        self.tensors = tuple(
            TensorInfo(name, array.shape, array.dtype.name, array.dtype) for name, array in self._arrays.items()
        )

    def read(self, tensor):
        """Read one tensor; see `Checkpoint.read`."""
        return self._arrays[tensor.name].copy()

    def rewrite(self, target, replace, record):
        """Write the file again; see `Checkpoint.rewrite`."""
        lists = {}
        for tensor in self.tensors:
            stretches = replace(tensor)
            new = None if stretches is None else np.concatenate([*stretches]).reshape(tensor.shape)
            lists[tensor.name] = (self._arrays[tensor.name] if new is None else new).tolist()
        target.write_text(json.dumps(lists))
