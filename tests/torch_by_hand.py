"""Reconstruction as an oracle: the whole model runs once for every layer, and rows are solved one by one in numpy."""

import copy

import numpy as np
import torch
from torch import nn
from torch_models import run

import transmask as tm
from transmask.torch.reconstruction.gram import layer_rows

RIDGE = 1e-2  # of `LeastSquares`


def fitted_by_hand(model, batches, *, sequential):
    """Run the whole model once for each layer, record what the layer is called with, and solve row by row."""
    order = max((recorded(model, [batch], None) for batch in batches), key=len)  # of one that goes everywhere
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    order += [name for name in layers if name not in order]
    dense = copy.deepcopy(model)
    for name in order:
        source = model if sequential else dense
        rows = recorded(source, batches, name)
        refit(layers[name], rows.numpy() if rows is not None else None)
    return order


def recorded(model, batches, name):
    """Return all inputs of a layer as rows; without a name, the layers in the order of their first calls."""
    calls, handles = [], []
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name in (None, key):

            def record(module, args, kwargs, output, key=key):
                calls.append((key, torch.cat(list(layer_rows(module, args[0] if args else kwargs["input"])), dim=1)[0]))

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    for handle in handles:
        handle.remove()
    if name is None:
        return list(dict.fromkeys(key for key, _ in calls))
    return torch.cat([rows for _, rows in calls]) if calls else None


@torch.no_grad()
def refit(layer, design):
    mask = tm.transposable_mask(layer.weight.numpy(), "2:4", axes=(0, 1))
    layer_mask = mask.reshape(len(mask), -1)
    weights = layer.weight.reshape(len(mask), -1).numpy().copy()
    if design is None:
        layer.weight *= torch.from_numpy(mask)
        return
    inputs = weights.shape[1]
    penalty = np.zeros(design.shape[1])
    penalty[:inputs] = RIDGE * np.square(design[:, :inputs]).sum() / inputs
    for row, kept in enumerate(layer_mask):
        support = np.append(kept, True) if layer.bias is not None else kept
        old = np.append(weights[row], layer.bias[row].item()) if layer.bias is not None else weights[row]
        left = design[:, support].T @ design[:, support] + np.diag(penalty[support])
        right = design[:, support].T @ (design @ old) + penalty[support] * old[support]
        new = np.zeros(len(old))
        new[support] = np.linalg.solve(left, right)
        layer.weight[row] = torch.from_numpy(new[:inputs]).reshape(layer.weight[row].shape)
        if layer.bias is not None:
            layer.bias[row] = new[-1]
