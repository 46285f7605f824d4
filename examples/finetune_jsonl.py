"""Fine-tune a causal language model on your own JSONL file, with transformers' Trainer.

    python -m glasshouse model=custom model.entry=examples/finetune_jsonl.py:Finetune \
        'model.data=[examples/notes.jsonl]' duration=20

Each line of the data is {"prompt": "...", "completion": "..."}. Text is read as bytes, so no tokenizer has
to be fetched; the loss counts the completion only. The model is a small Llama, made from a config here: put
your own there, or your own Trainer. What Glasshouse asks for stands in the last class, and in
site/custom-workload.md.

Settings (+model.params.NAME=VALUE): batch, learning_rate, length, hidden, layers, seed.
"""

import json
import queue
import threading

import torch
import transformers

PAD, END, VOCABULARY = 256, 257, 258  # after the 256 byte values
IGNORED = -100  # transformers' label for "not counted in the loss"


class Records(torch.utils.data.Dataset):
    """Prompt and completion pairs as byte tokens, each cut to `length`."""

    def __init__(self, data, length):
        self.items = []
        for line in bytes(data).splitlines():
            if line.strip():
                record = json.loads(line)
                prompt = list(record["prompt"].encode())
                completion = [*record["completion"].encode(), END]
                tokens = (prompt + completion)[:length]
                labels = ([IGNORED] * len(prompt) + completion)[:length]
                if any(label != IGNORED for label in labels):
                    self.items.append((tokens, labels))
        if not self.items:
            raise ValueError("no record has room for its completion: raise +model.params.length")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def collate(rows):
    """Pad a batch to its longest row."""
    longest = max(len(tokens) for tokens, _ in rows)

    def padded(values, filler):
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])

    tokens, labels = zip(*rows, strict=True)
    return {
        "input_ids": padded(tokens, PAD),
        "labels": padded(labels, IGNORED),
        "attention_mask": padded([[1] * len(row) for row in tokens], 0),
    }


class LossKeepingTrainer(transformers.Trainer):
    """A Trainer that remembers its last loss, on the device: reading it would stall the GPU."""

    last_loss = None

    def compute_loss(self, *args, **kwargs):
        outcome = super().compute_loss(*args, **kwargs)
        self.last_loss = (outcome[0] if isinstance(outcome, tuple) else outcome).detach()
        return outcome


class OneStepAtATime(transformers.TrainerCallback):
    """Lets a Trainer, which owns its loop, be driven from outside: it waits before each step.

    The Trainer runs in a thread of its own. `start` brings it to its first step, so that none has to prepare
    it; `step` lets it take one optimiser step and returns when that is done. Both raise what it raised.
    """

    def __init__(self, train):
        self.turns, self.done = queue.Queue(), queue.Queue()
        self.thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self.taken = 0

    def _run(self, train):
        try:
            train()
            self.done.put(RuntimeError("the Trainer ended by itself"))
        except BaseException as error:
            self.done.put(error)

    def on_step_begin(self, args, state, control, **kwargs):
        self.done.put(None)
        self.turns.get()

    def start(self):
        self.thread.start()
        self._wait()

    def step(self):
        self.turns.put("go")
        self._wait()
        self.taken += 1

    def _wait(self):
        error = self.done.get()
        if error is not None:
            raise error


class Finetune:
    """The workload. Made once per leg, in a fresh process, with (params, files, device)."""

    unit = "steps"  # what is counted and timed
    steps_per_unit = 1  # optimiser steps in one unit

    def __init__(self, params, files, device):
        cuda = torch.cuda.is_available() and device != "cpu"
        seed = int(params.get("seed", 1))
        # Both arms must begin alike: seed everything that is drawn.
        transformers.set_seed(seed)
        hidden, length = int(params.get("hidden", 64)), int(params.get("length", 256))
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=int(params.get("layers", 2)),
            num_attention_heads=4,
            max_position_embeddings=length,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
            use_cache=False,
        )
        self.model = transformers.LlamaForCausalLM(config)
        (data,) = files.values()  # model.data=[one file]: its name is the key
        self.records = Records(data, length)
        batch = int(params.get("batch", 4))
        arguments = transformers.TrainingArguments(
            output_dir="checkpoints",  # in the leg's scratch folder, the only one that can be written
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            per_device_train_batch_size=batch,
            learning_rate=float(params.get("learning_rate", 1e-3)),
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            max_grad_norm=1.0,
            max_steps=10**9,  # Glasshouse says when it is enough
            seed=seed,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
        )
        self.trainer = LossKeepingTrainer(
            model=self.model, args=arguments, train_dataset=self.records, data_collator=collate
        )
        self.driver = OneStepAtATime(self.trainer.train)
        self.trainer.add_callback(self.driver)
        self.driver.start()
        count = sum(parameter.numel() for parameter in self.model.parameters())
        self.info = {"rowsPerUnit": batch, "stepsPerUnit": 1, "trainableParams": count, "totalParams": count}

    def run_unit(self):
        """Do one unit of work. It may return before the device has finished."""
        self.driver.step()

    def synchronize(self):
        """Wait until the device has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def loss(self):
        """Return the latest loss as a float."""
        loss = self.trainer.last_loss
        return float("nan") if loss is None else float(loss)

    def trainable(self):
        """Return what is trained, by name: what is digested, sealed and given back to you."""
        # A tied tensor would be exported twice: named_parameters() leaves the second name out.
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def buffers(self):
        """Return every tensor to be overwritten at the end: weights, gradients, optimiser state."""
        held = list(self.model.parameters())
        held += [parameter.grad for parameter in held if parameter.grad is not None]
        if self.trainer.optimizer is not None:
            for state in self.trainer.optimizer.state.values():
                held += [value for value in state.values() if torch.is_tensor(value)]
        return held

    def given(self):
        """Return what else both arms must begin with (optional): here the data, as tokens in order."""
        return {"records": torch.tensor([token for tokens, _ in self.records.items for token in tokens])}
