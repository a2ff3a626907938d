"""What stands first on an evaluation's page: sentences made from its numbers, one table, and the terms explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nnunetv2_anomaly.errors import counted, listed
from nnunetv2_anomaly.evaluation.results import CLEANED, Evaluation
from nnunetv2_anomaly.evaluation.statistics import fewest_cases
from nnunetv2_anomaly.evaluation.tables import ASD, DSC, HD, best_models, mean_cell, summaries
from nnunetv2_anomaly.reporting.table import Cell, Table, in_words, number, word_cell

TERMS: Mapping[str, str] = {
    "DSC": "Dice similarity coefficient, the overlap of prediction and reference: 100 % where they agree in every "
    "voxel, 0 % where they share none. Higher is better.",
    "ASD": "Average surface distance: how far the two surfaces are apart on average, both ways. Lower is better.",
    "HD": "Hausdorff distance: how far they are apart at the worst place, both ways. Lower is better.",
    "HD*": "The same of the prediction as it is; ASD, HD and DSC are measured after post-processing.",
    "±": "Standard deviation over cases.",
    "Baseline": "The first model, with which the others are compared.",
}
LESION_TERMS: Mapping[str, str] = {
    "Sensitivity": "Share of the bones with a lesion in which one is found. Higher is better, as of all shares here.",
    "Specificity": "Share of the bones without a lesion in which none is found.",
    "Accuracy": "Share of all bones that are right either way.",
    "ROC, AUC": "Sensitivity over 1 - specificity while small or uncertain lesions are left out more and more; AUC is "
    "the area under that curve, 1 at best and 0.5 by chance.",
    "Bland-Altman plot": "Difference of two measurements over their mean. Bias is the mean difference; 95 % of the "
    "differences are expected within the limits of agreement, bias ± 1.96 standard deviations.",
}
TEST_TERMS: Mapping[str, str] = {
    "p": "How likely a difference as large as this one is by chance alone; below 0.05 it is called significant.",
    "Wilcoxon's signed-rank test": "Compares two models case by case; Holm's correction allows for several pairs.",
    "Tukey's test": "Compares all models at once, as if each had been measured on cases of its own.",
}


def summary_table(evaluation: Evaluation) -> Table:
    """Mean DSC after post-processing, in per cent: a row per label, a column per model, and the mean over labels.

    That mean is over the labels of which every model has a mean.
    """
    models, means = evaluation.models, _dsc_means(evaluation)
    rows, comparable = [], True
    for (label, _), found in summaries(evaluation, (DSC,), None).items():
        of = found[DSC]
        comparable &= len({summary.of for summary in of.values() if summary.n}) < 2
        best = best_models(of, larger_is_better=True)
        cells = [mean_cell(DSC, of[model], bold=model in best, mark="") for model in models]
        rows.append([word_cell("label", in_words(label), label), *cells])
    if len(means) > 1:
        whole = means.mean()
        best = set(whole[whole == whole.max()].index) if comparable and whole.nunique() > 1 else set()
        cells = [Cell(number(whole[model], DSC.digits), bold=model in best) for model in models]
        rows.append([word_cell("label", "mean of labels"), *cells])
    is_bold = any(cell.bold for row in rows for cell in row)
    bold = " Bold: the highest of the models, before rounding." if is_bold else ""
    notes = [f"Mean ± standard deviation over cases.{bold}"]
    if not comparable:
        notes.append("Where the models' means are over different cases, none is bold.")
    if len(means) < len(evaluation.labels):
        notes.append("The mean of labels is of those of which every model has a value.")
    return Table("DSC [%], after post-processing; higher is better", ("label", *models), rows, notes)


def compared_sentence(evaluation: Evaluation) -> str:
    """How many cases, which models, which labels."""
    models = [f"{model} (the baseline)" if place == 0 else model for place, model in enumerate(evaluation.models)]
    by = f"{', '.join(models[:-1])} and {models[-1]}" if len(models) > 1 else evaluation.models[0]
    cases = counted(evaluation.cases["case"].nunique(), "case")
    labels = [in_words(label) for label in evaluation.labels]
    return f"Segmentations of {cases} by {by} are compared with a reference, label by label: {listed(labels)}."


def dsc_sentence(evaluation: Evaluation) -> str:
    """What ``summary_table`` says, in words; numbers are compared as they are shown there."""
    means = _dsc_means(evaluation)
    if means.empty:
        return "No label has a DSC of every model."
    whole, means = means.mean().round(DSC.digits), means.round(DSC.digits)
    over = "DSC over labels" if len(means) > 1 else f"DSC of {in_words(str(means.index[0]))}"
    text = f"The mean {over} (overlap, 100 % at best) is "
    models = evaluation.models
    if len(models) == 1:
        column = means[models[0]].rename(index=in_words)
        low, high = column.idxmin(), column.idxmax()
        span = f", from {column.min():.1f} % ({low}) to {column.max():.1f} % ({high})" if column.nunique() > 1 else ""
        return f"{text}{whole.iloc[0]:.1f} %{span}."
    if len(models) > 2:
        ranked = whole.sort_values(ascending=False, kind="stable").items()
        return f"{text}{', '.join(f'{value:.1f} % for {model}' for model, value in ranked)}."
    first, second = models
    difference = round(whole[second] - whole[first], DSC.digits)
    verdict = f"{abs(difference):.1f} points {'higher' if difference > 0 else 'lower'}" if difference else "the same"
    text += f"{whole[first]:.1f} % for {first} and {whole[second]:.1f} % for {second}, which is {verdict}"
    if len(means) == 1:
        return f"{text}."
    signs = np.sign((means[second] - means[first]).round(DSC.digits))
    words = {1: "higher", -1: "lower", 0: "the same"}
    told = [f"{what} in {(signs == sign).sum()}" for sign, what in words.items() if (signs == sign).any()]
    return f"{text}; of {len(means)} labels it is {', '.join(told)}."


def significance_sentence(evaluation: Evaluation, paired: pd.DataFrame) -> str:
    """Whether DSC differs significantly from the baseline; of a single model, how far its surfaces are away.

    Args: paired: of ``statistics``.
    """
    models, baseline = evaluation.models, evaluation.models[0]
    if len(models) == 1:
        found = summaries(evaluation, (ASD, HD), None).values()
        asd, hd = (pd.Series([of[measure][baseline].mean for of in found]).mean() for measure in (ASD, HD))
        return (
            f"Its surfaces are {number(asd, ASD.digits)} mm from the reference's on average over labels (ASD), and "
            f"{number(hd, HD.digits)} mm at the worst place (HD)."
        )
    num_cases, fewest = evaluation.cases["case"].nunique(), fewest_cases(len(models))
    if num_cases < fewest:
        few = f"{counted(num_cases, 'case')} {'is' if num_cases == 1 else 'are'} too few to test a difference"
        return f"{few} (it takes {fewest}), so whatever the models differ by may be chance."
    of_dsc = paired[(paired["processing"] == CLEANED) & (paired["metric"] == "dsc")]
    of_dsc = of_dsc[of_dsc["model_a"] == baseline]
    of_dsc = of_dsc[of_dsc["significant"].astype(bool) & (of_dsc["difference"] != 0)]
    # The difference is the baseline's value less the model's.
    told = [
        f"that of {model} is {'lower' if is_lower else 'higher'} in {listed(part['label'].map(in_words).tolist())}"
        for model, own in of_dsc.groupby("model_b", sort=False)
        for is_lower, part in own.groupby(own["difference"] > 0)
    ]
    test = "Wilcoxon's signed-rank test, Holm's correction, p < 0.05"
    if told:
        return f"Significantly different from the DSC of {baseline} ({test}): {'; '.join(told)}."
    return f"In no label does DSC differ significantly from that of {baseline} ({test})."


def summary_sentences(evaluation: Evaluation, paired: pd.DataFrame) -> Sequence[str]:
    """Three: what was compared, with which result, and what that is worth. Args: paired: of ``statistics``."""
    return compared_sentence(evaluation), dsc_sentence(evaluation), significance_sentence(evaluation, paired)


def terms_of(evaluation: Evaluation, *, tested: bool) -> dict[str, str]:
    """Terms of an evaluation's page, and what they mean; ``tested``: whether tests of models are on it."""
    terms = dict(TERMS)
    if len(evaluation.models) == 1:
        del terms["Baseline"]
    if len(evaluation.bones):
        terms |= LESION_TERMS
    return {**terms, **(TEST_TERMS if tested else {})}


def _dsc_means(evaluation: Evaluation) -> pd.DataFrame:
    """Mean DSC in per cent: labels of which every model has one, by model."""
    found = summaries(evaluation, (DSC,), None)
    means = {label: {model: of[DSC][model].mean for model in evaluation.models} for (label, _), of in found.items()}
    return pd.DataFrame.from_dict(means, orient="index", columns=list(evaluation.models)).dropna()
