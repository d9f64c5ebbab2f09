"""Small random checkpoints of BLEURT and COMET, saved as their libraries save them."""

import json
import logging
import warnings
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]


def sentences() -> list[str]:
    """Some English to learn a vocabulary from: the sample's own general answers."""
    path = PROJECT / "datasets" / "sample_general" / "train.jsonl"
    return [json.loads(line)["output"] for line in path.read_text(encoding="utf-8").splitlines()]


def bleurt(folder: Path) -> Path:
    """A 2-layer BLEURT with a SentencePiece vocabulary, as BLEURT-20 has one."""
    import sentencepiece
    import torch
    from bleurt_pytorch import BleurtConfig, BleurtForSequenceClassification
    from bleurt_pytorch.bleurt.tokenization_bleurt_sp import BleurtSPTokenizer

    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_prefix=str(folder / "spm"),
        vocab_size=500,
        character_coverage=1.0,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    tokenizer = BleurtSPTokenizer(str(folder / "spm.model"))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BleurtConfig(
        vocab_size=len(tokenizer) + 8,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # so that different texts get visibly different scores
    )
    BleurtForSequenceClassification(config).save_pretrained(str(folder))
    return folder


def comet(folder: Path) -> Path:
    """A 2-layer XLM-R encoder under COMET's RegressionMetric, as COMET's hub models are saved."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{c}", -3.0) for c in letters] + [(c, -4.0) for c in letters]
    pieces += [("\u2581", -5.0), ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(encoder))
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        pad_token_id=1,
        initializer_range=0.5,
    )
    XLMRobertaModel(config).save_pretrained(str(encoder))
    _save_comet(folder, encoder)
    return folder


def _save_comet(folder: Path, encoder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as lightning
        from comet.models import RegressionMetric

        for name in ("pytorch_lightning", "transformers", "comet"):
            logging.getLogger(name).setLevel(logging.ERROR)
        model = RegressionMetric(
            encoder_model="XLM-RoBERTa", pretrained_model=str(encoder), hidden_sizes=[32]
        )
        trainer = lightning.Trainer(
            logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.strategy.connect(model)
        (folder / "checkpoints").mkdir()
        trainer.save_checkpoint(str(folder / "checkpoints" / "model.ckpt"))
    settings = {**model.hparams, "class_identifier": "regression_metric"}
    (folder / "hparams.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
