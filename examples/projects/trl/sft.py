"""Supervised fine-tuning with trl and LoRA: python sft.py --config sft.yaml [--learning-rate 1e-3]."""

import argparse
import json
from pathlib import Path

import torch
import yaml
from datasets import load_dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer


def make_base(texts, config):
    """Make a small base: a byte-pair tokenizer of these texts, and a model that was not trained."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=config["vocabulary"], special_tokens=special, show_progress=False
    )
    pairs.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pairs, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **config["architecture"],
    )
    return LlamaForCausalLM(shape), tokenizer


def main():
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text())
    training = config["training"]
    if options.learning_rate is not None:
        training["learning_rate"] = options.learning_rate
    set_seed(training["seed"])
    torch.set_num_threads(config["threads"])

    data = load_dataset("json", data_files=config["data"])
    data = data.map(lambda row: {"prompt": f"{row['prompt']} ="} | {"completion": f" {row['completion']}"})
    if config["base"]:
        model = AutoModelForCausalLM.from_pretrained(config["base"])
        tokenizer = AutoTokenizer.from_pretrained(config["base"])
    else:
        texts = [row["prompt"] + row["completion"] for row in data["train"]]
        model, tokenizer = make_base(texts, config)

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(options.outputs),
            eval_strategy="epoch",
            save_strategy="epoch",
            completion_only_loss=True,
            max_length=64,
            report_to="none",
            disable_tqdm=True,
            **training,
        ),
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **config["lora"]),
    )
    trainer.train()
    trainer.save_model(str(options.outputs / "adapter"))

    found = trainer.evaluate()
    result = {name: found[name] for name in ("eval_loss", "eval_mean_token_accuracy")}
    (options.outputs / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"held out: loss {found['eval_loss']:.3f}, tokens right {found['eval_mean_token_accuracy']:.3f}")


if __name__ == "__main__":
    main()
