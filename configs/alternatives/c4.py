# Faster R-CNN without FPN: proposals from the third stage, the fourth stage on each region, gates
# included. Detectron2 has it for Pascal VOC; MMDetection's is
# faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py.
kept = ('num_classes', 'bbox_coder', 'reg_class_agnostic', 'loss_cls', 'loss_bbox')
model = dict(
    type='C4FasterRCNN',
    backbone=dict(out_indices=(2,)),
    neck=None,
    rpn_head=dict(
        in_channels=1024,
        feat_channels=1024,
        anchor_generator=dict(scales=[2, 4, 8, 16, 32], strides=[16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=14), out_channels=1024, featmap_strides=[16]
        ),
        bbox_head=dict(
            _delete_=True,
            type='BBoxHead',
            with_avg_pool=True,
            in_channels=2048,
            roi_feat_size=7,
            **{key: _base_.model.roi_head.bbox_head[key] for key in kept},
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=12000, max_per_img=2000)),
    test_cfg=dict(rpn=dict(nms_pre=6000)),
)
del kept
