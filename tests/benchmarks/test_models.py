import pytest

from benchmarks.models import ABLATIONS, parse_model, parse_models
from nnunetv2_anomaly.errors import UserError


def test_plain_trainers_are_called_by_their_names():
    naive, aware, published = parse_models(["nnUNetTrainer", "AnomalyAwareTrainer", "UNETPlusTrainer"])
    assert (naive.name, naive.trainer, naive.detector) == ("nnUNetTrainer", "BudgetedNNUNetTrainer", 0.0)
    assert (aware.name, aware.trainer, aware.detector) == ("AnomalyAwareTrainer", "AnomalyAwareTrainer", 1.0)
    assert (published.trainer, published.detector) == ("UNETPlusTrainer", 0.0)


def test_settings_and_changed_parts_are_told_apart():
    model = parse_model("own=AnomalyAwareTrainer:alpha=1,channel=none,mirror_axes=[0,1],detector=0.25,weight=darker")
    assert model.name == "own"
    assert model.trainer == "AblationTrainer"
    assert model.settings == {"alpha": 1, "mirror_axes": [0, 1]}
    assert model.ablation == {"channel": "none", "weight": "darker"}
    assert model.detector == 0.25
    assert not model.mask_known
    assert parse_model("bound=AnomalyAwareTrainer:mask_known=true").mask_known


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("AnomalyAwareTrainer:alfa=1", "changes alfa; of AnomalyAwareTrainer can be changed: alpha, beta"),
        ("AnomalyAwareTrainer:seed=7", "changes seed"),
        ("AnomalyAwareTrainer:inpainting_epochs=7", "changes inpainting_epochs"),
        ("nnUNetTrainer:alpha=3", "changes alpha; of nnUNetTrainer can be changed: mirror_axes"),
        ("UNETSTrainer:mirror_axes=[0]", "changes mirror_axes"),
        ("AnomalyAwareTrainer:alpha=oops", "has alpha 'oops'; expected a number from 0"),
        ("AnomalyAwareTrainer:channel=cubed", "expected 'channel' and 'weight' with one of"),
        ("AnomalyAwareTrainer:mask_known=False", "'mask_known' with true or false"),
        ("AnomalyAwareTrainer:detector=0", "expected a share from 0.01 to 1"),
        ("AnomalyAwareTrainer:detector=0.104", "expected a share from 0.01 to 1"),
        ("AnomalyAwareTrainer:detector=abc", "expected a share from 0.01 to 1"),
        ("nnUNetTrainerDA5", "names the trainer nnUNetTrainerDA5"),
        ("AnomalyPreStageTrainer", "names the trainer AnomalyPreStageTrainer"),
        ("UNETTransferTrainer", "names the trainer UNETTransferTrainer"),
        ("nnUNetTrainer:channel=none", "changes channel"),
        ("a__b=nnUNetTrainer", "'a__b' is not usable"),
        ("a b=nnUNetTrainer", "'a b' is not usable"),
    ],
)
def test_what_cannot_be_compared_is_told(word, told):
    with pytest.raises(UserError, match=told):
        parse_model(word)


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UserError, match="several models are called nnUNetTrainer"):
        parse_models(["nnUNetTrainer", "nnUNetTrainer:mirror_axes=[]"])


def test_ablations_hold_each_part_alone_together_and_both_bounds():
    models = {model.name: model for model in parse_models(ABLATIONS)}
    # What the others are tested against does not mirror either.
    assert models[next(iter(models))].settings == {"mirror_axes": []}
    assert models["nnUNetTrainer"].settings == {}
    assert models["channel_only"].ablation == {"weight": "none"}
    assert models["focal_only"].ablation == {"channel": "none"}
    assert models["AnomalyAwareTrainer"].trainer == "AnomalyAwareTrainer"
    assert models["mask_known"].mask_known
    assert models["shuffled"].ablation == {"channel": "shuffled", "weight": "shuffled"}
