"""De-confound-TDE: recorded classifier, running mean and inference; what its bugs would change."""

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.calibration import TDE, RegionOutputs
from lt_detectron2.layers import CausalClassifier
from lt_detectron2.losses import SigmoidCrossEntropyLoss
from tests.golden import load_golden
from tests.losses.two_processes import run_in_two_processes
from tests.parity import compare

from .detector import NUM_FEATURES, K, linear


def recorded_classifier(golden):
    classifier = CausalClassifier(16, 41, mu=float(golden["mu"])).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.as_tensor(golden["weight"]))
    return classifier


def recorded_training(golden, classifier):
    """Feed the recorded steps; yields the running mean after each."""
    for x, labels in zip(golden["train_x"], golden["train_labels"]):
        # The official filter was written for label 0 as the background and is wrong for its own.
        classifier.update(torch.as_tensor(x), torch.as_tensor(labels) > 0)
        yield classifier.mean_feature.clone()


def test_golden_training_and_inference():
    golden = load_golden("tde")
    classifier = recorded_classifier(golden)
    trace = torch.stack(list(recorded_training(golden, classifier)))
    compare("CausalClassifier", "tde/embed_trace", trace, golden["embed_trace"])
    logits = classifier(torch.as_tensor(golden["train_x"][-1]))
    compare("CausalClassifier", "tde/train_logits_last", logits, golden["train_logits_last"])

    classifier.eval()
    features = torch.as_tensor(golden["infer_x"])
    logits = classifier(features).detach()
    compare("CausalClassifier", "tde/infer_plain_logits", logits, golden["infer_plain_logits"])
    direct = classifier.direct_effect(features, 1.5)
    compare("CausalClassifier", "tde/infer_tde_logits", direct, golden["infer_tde_logits"])
    outputs = RegionOutputs(logits, features=features, classifier=classifier)
    scores = TDE(40)(outputs)
    compare("TDE", "tde/infer_bgexempt_probs", scores, golden["infer_bgexempt_probs"])
    # What the official detector ranks instead: one more softmax.
    array = "infer_final_scores_double_softmax"
    compare("TDE", f"tde/{array}", scores.softmax(dim=1), golden[array])


def trained(**kwargs):
    torch.manual_seed(0)
    classifier = CausalClassifier(NUM_FEATURES, K + 1, **kwargs)
    features = torch.randn(40, NUM_FEATURES) + 1
    classifier.update(features, torch.arange(40) < 25)
    return classifier.eval(), features


def test_value_by_hand():
    # One head; x and the mean feature at 60 degrees, the first weight along x, the second across.
    classifier = CausalClassifier(2, 2, num_heads=1, scale=10.0, gamma=0.0, eps=1e-12)
    root = 3**0.5
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    classifier.update(torch.tensor([[1.0, root], [50.0, 50.0]]), torch.tensor([True, False]))
    x = torch.tensor([[5.0, 0.0]])
    assert_close(classifier(x), torch.tensor([[10.0, 0.0]]))
    # cos = 1/2; along e the unit vector of x has (1/4, root/4).
    expected = torch.tensor([[10 - 2 * 2.5, -2 * 2.5 * root]])
    assert_close(classifier.direct_effect(x, 2.0), expected)


def test_alpha_zero_changes_nothing():
    classifier, features = trained()
    outputs = RegionOutputs(classifier(features).detach(), features=features, classifier=classifier)
    for exempt in (True, False):
        scores = TDE(K, alpha=0.0, exempt_background=exempt)(outputs)
        assert_close(scores, outputs.scores)


def test_background_is_exempted():
    classifier, features = trained()
    outputs = RegionOutputs(classifier(features).detach(), features=features, classifier=classifier)
    exempted, plain = TDE(K)(outputs), TDE(K, exempt_background=False)(outputs)
    assert_close(exempted[:, -1], outputs.scores[:, -1])
    assert_close(exempted.sum(dim=1), torch.ones(40))
    assert_close(exempted[:, 1] / exempted[:, 0], plain[:, 1] / plain[:, 0])
    assert not torch.allclose(plain[:, -1], outputs.scores[:, -1])


def test_only_the_direction_of_the_mean_counts():
    classifier, features = trained()
    before = classifier.direct_effect(features, 1.5)
    classifier.mean_feature *= 1000
    assert_close(classifier.direct_effect(features, 1.5), before)


def test_steps_without_foreground_and_evaluation_change_nothing():
    classifier, features = trained()
    before = classifier.mean_feature.clone()
    classifier.update(features, torch.ones(40, dtype=torch.bool))  # evaluation mode
    classifier.train()
    classifier.update(features, torch.zeros(40, dtype=torch.bool))
    classifier.update(features[:0], torch.zeros(0, dtype=torch.bool))
    assert torch.equal(classifier.mean_feature, before)
    classifier.update(features, torch.ones(40, dtype=torch.bool))
    assert_close(classifier.mean_feature, 0.9998 * before + features.double().mean(dim=0))


def test_casting_the_model_leaves_the_mean_as_it_is():
    classifier, _ = trained()
    before = classifier.mean_feature.clone()
    classifier.bfloat16()
    assert classifier.weight.dtype == torch.bfloat16
    assert classifier.mean_feature.dtype == torch.float64
    assert torch.equal(classifier.mean_feature, before)


def test_without_a_mean_it_is_the_plain_softmax():
    classifier = CausalClassifier(NUM_FEATURES, K + 1)
    features = torch.randn(5, NUM_FEATURES)
    assert_close(classifier.direct_effect(features, 1.5), classifier(features))


def test_zero_vectors_have_finite_values_and_gradients():
    classifier = CausalClassifier(NUM_FEATURES, K + 1)
    with torch.no_grad():
        classifier.weight[0] = 0
    features = torch.zeros(2, NUM_FEATURES, requires_grad=True)
    classifier(features).sum().backward()
    assert features.grad.isfinite().all() and classifier.weight.grad.isfinite().all()


def _update(rank):
    torch.manual_seed(rank)
    classifier = CausalClassifier(NUM_FEATURES, K + 1)
    features, foreground = torch.randn(10, NUM_FEATURES), torch.arange(10) < 3 + 4 * rank
    classifier.update(features, foreground)
    classifier.update(features, foreground & (rank == 1))  # the first process has none
    return features, foreground, classifier.mean_feature


def test_two_processes_have_the_mean_of_all_regions():
    (x0, is0, mean0), (x1, is1, mean1) = run_in_two_processes(_update)
    first = torch.cat([x0[is0], x1[is1]]).double().mean(dim=0)
    expected = 0.9998 * first + x1[is1].double().mean(dim=0)
    assert_close(mean0, expected)
    assert torch.equal(mean0, mean1)


def test_state_travels_in_the_checkpoint():
    classifier, _ = trained()
    other = CausalClassifier(NUM_FEATURES, K + 1)
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other.mean_feature, classifier.mean_feature)
    assert classifier.bias is None


def test_messages():
    tde = TDE(K)
    with pytest.raises(ValueError, match="this detector has a Linear: train with CausalClassifier"):
        tde.check(linear(), lambda z: z.softmax(dim=1))
    sigmoid = SigmoidCrossEntropyLoss(K)
    with pytest.raises(ValueError, match="train with a softmax loss"):
        tde.check(CausalClassifier(NUM_FEATURES, K), sigmoid.scores)
    with pytest.raises(ValueError, match="num_heads must divide the 12 features"):
        CausalClassifier(NUM_FEATURES, K, num_heads=5)
    with pytest.raises(ValueError, match=r"mu must lie in \[0, 1\), got 1.0"):
        CausalClassifier(NUM_FEATURES, K, mu=1.0)
    with pytest.raises(ValueError, match="expected scale > 0"):
        CausalClassifier(NUM_FEATURES, K, scale=0.0)
