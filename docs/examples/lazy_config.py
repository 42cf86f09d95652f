"""
Our heads in a project that configures Detectron2 by LazyConfig: only the targets change.

    python docs/examples/lazy_config.py

Takes Detectron2's Mask R-CNN of the model zoo, replaces heads and box predictor, makes it small and
trains for a few steps on random images. No YAML and no key of ours is involved.
"""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from lt_detectron2.losses import BalancedSoftmaxLoss
from lt_detectron2.modeling.box_predictor import LongTailFastRCNNOutputLayers
from lt_detectron2.modeling.roi_heads import LongTailROIHeads
from lt_detectron2.statistics import ClassStatistics

INSTANCES, IMAGES = [900, 300, 60, 9, 3], [400, 200, 50, 8, 3]
K = len(INSTANCES)


def long_tail_model():
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.roi_heads.num_classes = K
    # All that another project needs. Counts may come from its own annotations:
    # lt_detectron2.data.statistics.dataset_statistics(("my_train",)).
    statistics = LazyCall(ClassStatistics)(
        instance_count=INSTANCES, image_count=IMAGES, num_images=1000
    )
    model.roi_heads._target_ = LongTailROIHeads
    model.roi_heads.box_predictor._target_ = LongTailFastRCNNOutputLayers
    model.roi_heads.box_predictor.classification_loss = LazyCall(BalancedSoftmaxLoss)(
        num_classes="${...num_classes}", statistics=statistics
    )
    # Detectron2's 0.05 hides rare classes.
    model.roi_heads.box_predictor.test_score_thresh = 1e-4
    return small(model)


def small(model):
    """The same, small enough to train on a CPU."""
    stages = LazyCall(ResNet.make_default_stages)(depth=18, norm="BN")
    model.backbone.bottom_up.stages = stages
    model.backbone.bottom_up.stem.norm = "BN"
    model.backbone.bottom_up.freeze_at = 0
    model.roi_heads.box_head.fc_dims = [128, 128]
    model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=128)
    model.roi_heads.mask_head.conv_dims = [32, 32]
    model.roi_heads.batch_size_per_image = 32
    model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (100, 50)
    return model


def batch(generator):
    """Two images of noise with one object each."""
    images = []
    for _ in range(2):
        instances = Instances((96, 96))
        instances.gt_boxes = Boxes([[20.0, 20.0, 76.0, 76.0]])
        instances.gt_classes = torch.randint(0, K, (1,), generator=generator)
        masks = torch.zeros(1, 96, 96, dtype=torch.bool)
        masks[:, 20:76, 20:76] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, 96, 96), generator=generator)
        images.append({"image": image, "instances": instances, "height": 96, "width": 96})
    return images


if __name__ == "__main__":
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = instantiate(long_tail_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    with EventStorage() as storage:
        for step in range(6):
            losses = model(batch(generator))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            storage.step()
            print(f"step {step}  loss_cls {losses['loss_cls'].item():.3f}")
    with torch.no_grad():
        found = model.eval()(batch(generator))[0]["instances"]
    print(f"{len(found)} detections by {type(model.roi_heads.box_predictor).__name__}")
