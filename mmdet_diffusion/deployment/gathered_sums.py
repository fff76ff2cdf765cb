"""RoIAlign in ONNX: the weighted sums of gathered rows (:mod:`mmdet_diffusion.ops.roi_align`), one box after the other.

torch computes them by ``embedding_bag``, which ONNX lacks. The tracer writes a node of our own in its place, and
:func:`expand_gathered_sums` puts a ``Loop`` over boxes there: gather the rows that a box's bins sum (49 x 16 of them,
800 KB at 256 channels, which stay in the processor's cache) and multiply each bin's by its weights. Gathering for all
boxes at once writes and reads 400 MB at 500 boxes; ``RoiAlign`` reads channel by channel (docs/deployment.md has the
times).
"""

import onnx
from onnx import TensorProto, helper

DOMAIN, OPERATOR = 'mmdet_diffusion', 'GatheredSums'


def gathered_sums_symbolic(graph, table, indices, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights,
                           include_last_offset, padding_idx):
    """What the tracer writes for ``aten::embedding_bag``, whose bags here are equally large."""
    sums = graph.op(f'{DOMAIN}::{OPERATOR}', table, indices, per_sample_weights)
    return sums, sums, sums, sums  # the others serve its gradient


def expand_gathered_sums(model: onnx.ModelProto, bins: int, rows: int) -> None:
    """Replace our nodes by operators of ONNX.

    Args:
        model (onnx.ModelProto): is changed.
        bins (int): of a box.
        rows (int): that a bin sums.
    """
    graph, nodes = model.graph, []
    constants = dict(zero=[0], rows_shape=[-1, bins, rows], weights_shape=[-1, bins, 1, rows])
    names = {name: f'{OPERATOR}_{name}' for name in (*constants, 'true')}
    found = 0
    for node in graph.node:
        if node.domain == DOMAIN:
            nodes += _loop_over_boxes(node, f'{OPERATOR}_{found}', names)
            found += 1
        else:
            nodes.append(node)
    for name, values in constants.items():
        graph.initializer.append(helper.make_tensor(names[name], TensorProto.INT64, [len(values)], values))
    graph.initializer.append(helper.make_tensor(names['true'], TensorProto.BOOL, [], [True]))
    del graph.node[:]
    graph.node.extend(nodes)
    for opset in [opset for opset in model.opset_import if opset.domain == DOMAIN]:
        model.opset_import.remove(opset)


def _loop_over_boxes(node: onnx.NodeProto, prefix: str, names: dict[str, str]) -> list[onnx.NodeProto]:
    table, indices, weights = node.input

    def at(name: str) -> str:
        return f'{prefix}_{name}'

    body = helper.make_graph(
        [
            helper.make_node('Gather', [at('rows'), at('box')], [at('box_rows')]),
            helper.make_node('Gather', [at('weights'), at('box')], [at('box_weights')]),
            helper.make_node('Gather', [table, at('box_rows')], [at('gathered')]),
            helper.make_node('MatMul', [at('box_weights'), at('gathered')], [at('box_sums')]),
            helper.make_node('Identity', [at('go_on')], [at('still')]),
        ], at('body'),
        [helper.make_tensor_value_info(at('box'), TensorProto.INT64, []),
         helper.make_tensor_value_info(at('go_on'), TensorProto.BOOL, [])],
        [helper.make_tensor_value_info(at('still'), TensorProto.BOOL, []),
         helper.make_tensor_value_info(at('box_sums'), TensorProto.FLOAT, None)])
    return [
        helper.make_node('Reshape', [indices, names['rows_shape']], [at('rows')]),
        helper.make_node('Reshape', [weights, names['weights_shape']], [at('weights')]),
        helper.make_node('Shape', [at('rows')], [at('count')], start=0, end=1),
        helper.make_node('Squeeze', [at('count'), names['zero']], [at('boxes')]),
        helper.make_node('Loop', [at('boxes'), names['true']], [at('sums')], body=body, name=at('loop')),
        # (boxes, bins, 1, channels) -> (boxes * bins, channels)
        helper.make_node('Flatten', [at('sums')], [node.output[0]], axis=3),
    ]
