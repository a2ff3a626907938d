"""A data set's name from what a user gives, as everywhere in nnU-Net."""

from __future__ import annotations

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_anomaly.errors import UserError


def dataset_name(dataset: str) -> str:
    """The name of a data set given by number or name.

    Raises: UserError if nnU-Net's folders know none of that number, or several.
    """
    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        found = "there more than once" if "More than one" in str(error) else "not known"
        fault = f"the data set {dataset!r} is {found} in nnUNet_raw, nnUNet_preprocessed or nnUNet_results"
        raise UserError(f"{fault}; expected a number or a name like Dataset501_OAIZIB") from error
