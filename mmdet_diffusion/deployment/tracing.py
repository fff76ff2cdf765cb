"""From a module to an ONNX file by torch's tracer.

The newer exporter (``dynamo=True``) takes minutes over sizes that may vary, and onnxscript beside; the tracer takes
seconds. What it would fix to the sizes of its example is replaced while it runs; that nothing else is, the check of the
export and the tests show, at other sizes.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from unittest import mock

import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import Tensor, nn

from ..ops import roi_align
from .gathered_sums import DOMAIN, expand_gathered_sums, gathered_sums_symbolic

OPSET = 18
# Older torch, of which the tracer is the only exporter, does not know the word.
TRACED = {'dynamo': False} if 'dynamo' in signature(torch.onnx.export).parameters else {}


def export_graph(graph: nn.Module, inputs: Sequence[Tensor], path: Path, *, input_names: Sequence[str],
                 output_names: Sequence[str], dynamic: dict[str, dict[int, str]], roi_extractor: nn.Module,
                 metadata: dict[str, str]) -> None:
    """Trace a module and write it.

    Args:
        graph (nn.Module): in evaluation mode.
        inputs (Sequence[Tensor]): an example.
        path (Path): of the file to write.
        input_names (Sequence[str]): of the graph's inputs.
        output_names (Sequence[str]): of its outputs.
        dynamic (dict[str, dict[int, str]]): names of the axes whose size may vary, by input and output.
        roi_extractor (nn.Module): that the graph looks boxes up with, if it does.
        metadata (dict[str, str]): is kept in the file.
    """
    with torch.no_grad(), _traceable():
        # No folding: sizes behind our operator would be taken for those of the example. The engines fold constants.
        torch.onnx.export(graph.eval(), tuple(inputs), str(path), opset_version=OPSET, input_names=list(input_names),
                          output_names=list(output_names), dynamic_axes=dynamic, custom_opsets={DOMAIN: 1},
                          do_constant_folding=False, **TRACED)
    model = onnx.load(path)
    expand_gathered_sums(model, roi_extractor.num_bins, (2 * roi_extractor.sampling_ratio)**2)
    del model.graph.value_info[:]  # sizes of the example, which engines would believe
    model.producer_name = 'mmdet_diffusion'
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextmanager
def _traceable() -> Iterator[None]:
    """The tracer's own operators and replacements, as long as it runs."""
    symbolics = {'aten::embedding_bag': gathered_sums_symbolic, 'aten::mT': _transposed}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')  # of every number that is asked of a shape
        stack.enter_context(mock.patch.object(roi_align._WeightedRows, 'apply', _weighted_rows))
        stack.enter_context(mock.patch.object(ShiftWindowMSA, 'window_reverse', _window_reverse))
        stack.enter_context(mock.patch.object(nn.MultiheadAttention, 'forward', _attention))
        for name, symbolic in symbolics.items():
            torch.onnx.register_custom_op_symbolic(name, symbolic, OPSET)
            stack.callback(torch.onnx.unregister_custom_op_symbolic, name, OPSET)
        yield


def _transposed(graph, matrices):
    rank = matrices.type().dim()
    return graph.op('Transpose', matrices, perm_i=[*range(rank - 2), rank - 1, rank - 2])


def _window_reverse(self, windows: Tensor, height: int, width: int) -> Tensor:
    """As mmdet's, which computes the number of images by ``int`` and so fixes it.

    Args:
        self (ShiftWindowMSA): of which the window size is used.
        windows (Tensor): shape (B * windows, size, size, C).
        height (int): of the padded map, a multiple of the size.
        width (int): likewise.

    Returns:
        Tensor: shape (B, height, width, C).
    """
    size, channels = self.window_size, windows.shape[-1]
    windows = windows.view(-1, height // size, width // size, size, size, channels)
    return windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def _attention(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: None = None,
               need_weights: bool = True, attn_mask: None = None, average_attn_weights: bool = True,
               is_causal: bool = False) -> tuple[Tensor, None]:
    """Attention without masks, as torch's, which asks for sizes that the tracer then fixes.

    Args:
        self (nn.MultiheadAttention): with its weights.
        query (Tensor): shape (B, L, E), or (L, B, E) without ``batch_first``, as of the others.
        key (Tensor): shape (B, M, E).
        value (Tensor): shape (B, M, E).
        key_padding_mask (None): not taken.
        need_weights (bool): is not listened to.
        attn_mask (None): not taken.
        average_attn_weights (bool): is not listened to.
        is_causal (bool): not taken.

    Returns:
        tuple[Tensor, None]: shape (B, L, E), or (L, B, E).
    """
    if key_padding_mask is not None or attn_mask is not None or is_causal or self.in_proj_weight is None:
        raise ValueError('attention with masks, or with keys of another width, is not exported')
    inputs = (query, key, value) if self.batch_first else [each.transpose(0, 1) for each in (query, key, value)]
    biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(self.embed_dim)
    q, k, v = (F.linear(*each).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
               for each in zip(inputs, self.in_proj_weight.split(self.embed_dim), biases, strict=True))
    shares = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
    attended = self.out_proj((shares @ v).transpose(1, 2).flatten(2))
    return (attended if self.batch_first else attended.transpose(0, 1)), None


def _weighted_rows(table: Tensor, *taps: Tensor) -> Tensor:
    """As the function of that name without its gradient: the tracer takes what a function gives for constant."""
    rows, weights = roi_align._rows_and_weights(*taps)
    return F.embedding_bag(rows, table, mode='sum', per_sample_weights=weights)
