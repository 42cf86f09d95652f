"""
A long-tail loss in torchvision's Faster R-CNN: its classification loss and its scores are replaced.

    python docs/examples/torchvision_detector.py

Trains for a few steps on random boxes. Detectron2 is not needed. torchvision counts the background
as class 0 and the classes from 1; our losses have the classes 0..K-1 and the background K.
"""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, backbone_utils
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import batched_nms, clip_boxes_to_image

from lt_detectron2.losses import EqualizationLossV2

K = 5


class LongTailRoIHeads(RoIHeads):
    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            sampled = self.select_training_samples(proposals, targets)
            proposals, _, labels, regression_targets = sampled
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        if self.training:
            # Of torchvision's pair of losses only the second is wanted.
            unused = logits.new_zeros(len(logits), K + 1)
            _, box_loss = fastrcnn_loss(unused, deltas, labels, regression_targets)
            ours = (torch.cat(labels) - 1) % (K + 1)
            loss = self.classification_loss(logits, ours)
            return [], {"loss_classifier": loss, "loss_box_reg": box_loss}
        scores = self.classification_loss.scores(logits)[:, :K]
        boxes = self.box_coder.decode(deltas, proposals)[:, 1:]
        sizes = [len(of_image) for of_image in proposals]
        parts = zip(boxes.split(sizes), scores.split(sizes), image_shapes)
        return [self.detections(*part) for part in parts], {}

    def detections(self, boxes, scores, image_shape):
        """Of one image, from boxes (R, K, 4) and scores (R, K)."""
        regions, classes = (scores > self.score_thresh).nonzero(as_tuple=True)
        boxes = clip_boxes_to_image(boxes[regions, classes], image_shape)
        scores = scores[regions, classes]
        kept = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": classes[kept] + 1}


def use_loss(model, loss):
    """Replace the classification loss of a Faster R-CNN, and with it what its classifier means."""
    stock = model.roi_heads
    classifier = nn.Linear(stock.box_predictor.cls_score.in_features, loss.num_logits)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    loss.init_classifier(classifier)
    stock.box_predictor.cls_score = classifier
    parts = (stock.box_roi_pool, stock.box_head, stock.box_predictor)
    sampling = (0.5, 0.5, 64, 0.25, None)  # IoUs, regions of an image, share of foreground
    # Thresholds as low as 1e-4 let rare classes through.
    model.roi_heads = LongTailRoIHeads(*parts, *sampling, 1e-4, 0.5, 100)
    model.roi_heads.classification_loss = loss


def batch(generator):
    """Two images of noise with one coloured box each."""
    images, targets = [], []
    for _ in range(2):
        image = torch.rand(3, 64, 64, generator=generator)
        label = int(torch.randint(1, K + 1, (1,), generator=generator))
        x, y = torch.randint(0, 32, (2,), generator=generator).tolist()
        image[:, y : y + 32, x : x + 32] = label / K
        images.append(image)
        box = torch.tensor([[x, y, x + 32, y + 32]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    return images, targets


if __name__ == "__main__":
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = FasterRCNN(backbone, num_classes=K + 1, min_size=64, max_size=64)
    use_loss(model, EqualizationLossV2(K))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    for step in range(15):
        losses = model(*batch(generator))
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step in (0, 14):
            print(f"step {step:<3} loss_classifier {losses['loss_classifier'].item():.3f}")
    with torch.no_grad():
        (found, _) = model.eval()(batch(generator)[0])
    print(f"{len(found['scores'])} detections, labels {found['labels'].unique().tolist()}")
