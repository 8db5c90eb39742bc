# MSRA's ImageNet weights, from which Detectron2 starts: BGR images with a standard deviation of 1,
# a stage's stride in its first 1x1 convolution. The files, R-50.pkl and R-101.pkl, are at
# https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/.
checkpoint = f'msra://data/msra/R-{_base_.model.backbone.depth}.pkl'
model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
)
del checkpoint
