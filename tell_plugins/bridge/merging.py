"""An adapter as a whole model, by ms-swift's own merge; and what hubs call a model."""

from __future__ import annotations

from pathlib import Path

from tell_plugins.core.errors import UserError


def merge(adapter: Path, folder: Path) -> None:
    """Write the model that an adapter was trained on, with its weights merged in, to `folder`.

    The adapter's `args.json` names the model and the type of its numbers. Raises UserError where
    the adapter does not fit that model.
    """
    from swift.arguments import ExportArguments
    from swift.pipelines.export.merge_lora import merge_lora

    try:
        args = ExportArguments(
            adapters=[str(adapter)], merge_lora=True, output_dir=str(folder), exist_ok=True
        )
        merge_lora(args, replace_if_exists=True)
    except (RuntimeError, ValueError) as error:  # other shapes, or no such modules
        raise UserError(
            f"the adapter does not fit the model: {' '.join(str(error).split())[:300]}",
            where="args.json, key 'model'",
            remedy="restore the model that it was trained on",
        ) from None


def hub_id(model: str) -> str | None:
    """Hugging Face's id of a model that ms-swift's tables know, by its name: of a folder, or of a
    model on ModelScope. None for others."""
    from swift.model import MODEL_MAPPING

    name = Path(model).name.lower()
    for meta in MODEL_MAPPING.values():
        for known in (known for group in meta.model_groups for known in group.models):
            ids = (known.hf_model_id, known.ms_model_id)
            if known.hf_model_id and name in [Path(text or "").name.lower() for text in ids]:
                return str(known.hf_model_id)
    return None
