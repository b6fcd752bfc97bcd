"""Three tasks that graphsurgeon scripts are written for, as passes with options.

    optimize detector.onnx --plugin examples/graphsurgeon/surgery.py --no-verify \
        --passes 'image_input,efficient_nms(max_boxes=50)'
    optimize detector.onnx --plugin examples/graphsurgeon/surgery.py --no-verify \
        --passes 'cut(inputs=[features],outputs=[boxes])'
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxlathe.adapters import from_graphsurgeon


@from_graphsurgeon(name="efficient_nms")
def efficient_nms(
    graph: Any,
    *,
    boxes: str = "boxes",
    scores: str = "scores",
    max_boxes: int = 100,
    iou_threshold: float = 0.45,
    score_threshold: float = 0.25,
) -> None:
    """Put TensorRT's EfficientNMS behind a detector's head.

    `boxes` [batch, number, 4] and `scores` [batch, number, classes] are outputs of the model (x1, y1, x2, y2);
    instead it gives the number of detections, and their boxes, scores and classes.
    """
    import onnx_graphsurgeon as gs

    tensors = graph.tensors()
    batch = tensors[boxes].shape[0]
    outputs = [
        gs.Variable("num_detections", np.int32, [batch, 1]),
        gs.Variable("detection_boxes", np.float32, [batch, max_boxes, 4]),
        gs.Variable("detection_scores", np.float32, [batch, max_boxes]),
        gs.Variable("detection_classes", np.int32, [batch, max_boxes]),
    ]
    graph.layer(
        op="EfficientNMS_TRT",
        name="efficient_nms",
        domain="trt.plugins",
        inputs=[tensors[boxes], tensors[scores]],
        outputs=outputs,
        attrs={
            "plugin_version": "1",
            "background_class": -1,
            "max_output_boxes": max_boxes,
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "score_activation": 0,
            "box_coding": 0,
        },
    )
    graph.outputs = outputs
    graph.cleanup()


@from_graphsurgeon(name="image_input")
def image_input(
    graph: Any,
    *,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> None:
    """Let the model take images as they come: uint8, channels last.

    The model's first input, float32 [batch, 3, height, width] of normalized colours, is computed from a new
    input `image`, uint8 [batch, height, width, 3].
    """
    import onnx_graphsurgeon as gs

    old = graph.inputs[0]
    batch, channels, height, width = old.shape
    image = gs.Variable("image", np.uint8, [batch, height, width, channels])
    pixels = gs.Variable("image/float", np.float32, image.shape)
    first = gs.Variable("image/first", np.float32, old.shape)
    scaled = gs.Variable("image/scaled", np.float32, old.shape)
    column = (1, -1, 1, 1)
    factor = gs.Constant("image/factor", (1 / (255 * np.array(std))).reshape(column).astype(np.float32))
    offset = gs.Constant("image/offset", (np.array(mean) / np.array(std)).reshape(column).astype(np.float32))
    graph.nodes.extend(
        [
            gs.Node("Cast", "image/Cast", {"to": 1}, [image], [pixels]),
            gs.Node("Transpose", "image/Transpose", {"perm": [0, 3, 1, 2]}, [pixels], [first]),
            gs.Node("Mul", "image/Mul", {}, [first, factor], [scaled]),
            gs.Node("Sub", "image/Sub", {}, [scaled, offset], [old]),
        ]
    )
    graph.inputs[0] = image
    graph.toposort()


@from_graphsurgeon(name="cut")
def cut(graph: Any, *, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> None:
    """Keep only what lies between the tensors `inputs` and `outputs`; those left out stay as they are."""
    tensors = graph.tensors()
    if inputs:
        for name in inputs:
            tensors[name].inputs.clear()
        graph.inputs = [tensors[name] for name in inputs]
    if outputs:
        graph.outputs = [tensors[name] for name in outputs]
    for tensor in (*graph.inputs, *graph.outputs):
        # The interface of a model needs types; in the middle of one they may be unknown.
        tensor.dtype = np.float32 if tensor.dtype is None else tensor.dtype
    graph.cleanup()


PASSES = [efficient_nms, image_input, cut]
