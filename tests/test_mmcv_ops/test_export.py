"""A detector's RoIAlign and NMS leave for ONNX as operators of the standard."""

import pytest
import torch
from operator_cases import boxes, regions

from mmattn.mmcv_ops import operators


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        from mmcv.ops import RoIAlign

        self.align = RoIAlign((3, 2), spatial_scale=0.25, sampling_ratio=2)

    def forward(self, input, rois, boxes, scores, classes):
        from mmcv.ops import batched_nms

        dets, keep = batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5))
        return self.align(input, rois), dets, keep


def inputs():
    return (
        torch.randn(2, 3, 16, 15),
        regions(5, dtype=torch.float32)[:4],
        boxes(40, dtype=torch.float32),
        torch.rand(40),
        torch.randint(3, (40,)),
    )


@pytest.mark.parametrize('dynamo', [False, True])
@pytest.mark.filterwarnings('ignore')
def test_onnx(dynamo, tmp_path, run_on):
    run_on(operators)
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    model, file = Detector().eval(), str(tmp_path / 'model.onnx')
    # mmcv's own form of RoIAlign for the older exporter is of opset 11.
    options = dict(dynamo=True) if dynamo else dict(dynamo=False, opset_version=11)
    torch.onnx.export(model, inputs(), file, **options)
    types = {node.op_type for node in onnx.load(file).graph.node}
    assert {'RoiAlign', 'NonMaxSuppression'} <= types
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    # Other values than those of the export, of which other boxes stay.
    values = inputs()
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    for found, expected in zip(session.run(None, feed), model(*values), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
