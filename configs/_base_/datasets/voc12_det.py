# VOC2012 train to train, VOC2012 val to test; sizes and schedule as for VOC07+12, of
# which CAT's Table 6 says nothing.
_base_ = './voc0712.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='VOCDataset',
        data_root=_base_.data_root,
        ann_file='VOC2012/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2012/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        ann_file='VOC2012/ImageSets/Main/val.txt', data_prefix=dict(sub_data_root='VOC2012/')
    )
)
test_dataloader = val_dataloader

# Detectron2's evaluator takes the 11-point rule for 2007 and the area under the curve for 2012.
val_evaluator = dict(type='VOCAPMetric', eval_mode='area')
test_evaluator = val_evaluator
