"""The data: prompts, completions, and a tokenizer made from them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

IGNORED = -100  # a label that the loss does not count


def read(path):
    """Return a JSONL file's records."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def make_tokenizer(records, size):
    """Train a byte-pair tokenizer on the records."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator((f"{row['prompt']} = {row['completion']}" for row in records), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


class Pairs(Dataset):
    """Records as tokens; the prompt's own are not counted in the loss."""

    def __init__(self, records, tokenizer):
        self.items = []
        for row in records:
            prompt = [tokenizer.bos_token_id, *tokenizer(f"{row['prompt']} = ")["input_ids"]]
            completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
            labels = [IGNORED] * len(prompt) + completion
            self.items.append({"input_ids": prompt + completion, "labels": labels})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Padded:
    """Put records into one batch, as long as the longest."""

    def __init__(self, pad):
        self.pad = pad

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in rows:
            have, lacks = len(row["input_ids"]), longest - len(row["input_ids"])
            batch["input_ids"].append([*row["input_ids"], *[self.pad] * lacks])
            batch["labels"].append([*row["labels"], *[IGNORED] * lacks])
            batch["attention_mask"].append([1] * have + [0] * lacks)
        return {name: torch.tensor(value) for name, value in batch.items()}
