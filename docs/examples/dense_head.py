"""
A long-tail loss in a dense head as RetinaNet has it: every cell of a feature map is a region.

    python docs/examples/dense_head.py

A cell of class c carries the pattern of c and much noise. Five of 100 cells hold anything, and one
in a hundred of these the rarest class. Any loss of the package fits.
"""

import torch
from torch import nn

from lt_detectron2.losses import BalancedSoftmaxLoss, SeesawLoss, SoftmaxCrossEntropyLoss
from lt_detectron2.statistics import ClassStatistics

SHARES = torch.tensor([0.5, 0.3, 0.12, 0.05, 0.02, 0.01])
K, CHANNELS, SIZE = len(SHARES), 16, 24
PATTERNS = 0.5 * torch.randn(K + 1, CHANNELS, generator=torch.Generator().manual_seed(5))
PATTERNS[K] = 0  # the background is noise only


def batch(images, shares, generator):
    """Feature maps (N, C, H, W), and targets (N, H, W): 0..K-1, K for background, -1 to ignore."""
    cells = images * SIZE * SIZE
    targets = torch.multinomial(shares, cells, replacement=True, generator=generator)
    draw = torch.rand(cells, generator=generator)
    targets[draw > 0.05] = K
    noise = torch.randn(cells, CHANNELS, generator=generator)
    maps = (PATTERNS[targets] + noise).view(images, SIZE, SIZE, CHANNELS).permute(0, 3, 1, 2)
    targets[draw < 0.001] = -1  # as anchors are that overlap an object a little
    return maps, targets.view(images, SIZE, SIZE)


class DenseHead(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(CHANNELS, 32, 1), nn.ReLU())
        self.classifier = nn.Conv2d(32, loss.num_logits, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        loss.init_classifier(self.classifier)  # the prior probability, through the bias
        self.loss = loss

    def forward(self, maps):
        """(N H W, L) logits: a row for each cell, as our losses take them."""
        logits = self.classifier(self.tower(maps))
        return logits.permute(0, 2, 3, 1).flatten(end_dim=2)

    def training_loss(self, maps, targets):
        logits, targets = self(maps), targets.flatten()
        counted = targets >= 0
        losses = self.loss.region_losses(logits[counted], targets[counted])
        foreground = (targets[counted] < K).sum()
        return losses.sum() / foreground.clamp(min=1)  # RetinaNet's normaliser, not ours


def train(loss):
    """Share of each class's cells whose best class is the right one, after training."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    head = DenseHead(loss)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for _ in range(150):
        value = head.training_loss(*batch(4, SHARES, generator))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
    maps, targets = batch(64, torch.full((K,), 1 / K), generator)
    targets = targets.flatten()
    with torch.no_grad():
        best = head.loss.eval().scores(head(maps))[:, :K].argmax(dim=1)
    return torch.stack([(best[targets == c] == c).float().mean() for c in range(K)])


if __name__ == "__main__":
    counts = (10000 * SHARES).long()
    statistics = ClassStatistics(counts, counts, num_images=10000)
    losses = [SoftmaxCrossEntropyLoss(K), BalancedSoftmaxLoss(K, statistics), SeesawLoss(K)]
    for loss in losses:
        right = train(loss)
        name, head, tail = type(loss).__name__, right[:2].mean(), right[-2:].mean()
        print(f"{name:<24} all {right.mean():.2f}  head {head:.2f}  tail {tail:.2f}")
