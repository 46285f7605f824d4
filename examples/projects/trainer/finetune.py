"""Fine-tune a small Llama to write dates out: python finetune.py --config config.json [--epochs 3]."""

import argparse
import json
from pathlib import Path

import torch
from dates import IGNORED, Padded, Pairs, make_tokenizer, read
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

TIMES = ("_runtime", "_per_second")


def without_times(row):
    """Leave out what differs from one run to the next."""
    return {name: value for name, value in row.items() if not name.endswith(TIMES)}


class History(TrainerCallback):
    """Keep what the trainer logs in a file of one line each."""

    def __init__(self, path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **others):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step} | without_times(logs)) + "\n")


def likeliest(scores, labels):
    """Keep the likeliest token of each place, and not the scores of all."""
    return scores.argmax(dim=-1)


def accuracy(found):
    """Return how many of the completions' tokens are right."""
    given, wanted = found.predictions[:, :-1], found.label_ids[:, 1:]
    counted = wanted != IGNORED
    return {"accuracy": float((given[counted] == wanted[counted]).mean())}


def main():
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    training = config["training"]
    if options.learning_rate is not None:
        training["learning_rate"] = options.learning_rate
    if options.epochs is not None:
        training["num_train_epochs"] = options.epochs
    set_seed(training["seed"])
    torch.set_num_threads(config["threads"])

    records = read(config["train"])
    tokenizer = make_tokenizer(records, config["vocabulary"])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **config["model"],
        )
    )
    options.outputs.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.outputs),
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            disable_tqdm=True,
            **training,
        ),
        train_dataset=Pairs(records, tokenizer),
        eval_dataset=Pairs(read(config["eval"]), tokenizer),
        data_collator=Padded(tokenizer.pad_token_id),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=likeliest,
        callbacks=[History(options.outputs / "history.jsonl")],
    )
    trainer.train()
    trainer.save_model(str(options.outputs / "model"))

    result = without_times(trainer.evaluate())
    prompt = tokenizer("2024-05-17 = ", return_tensors="pt")["input_ids"]
    start = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), prompt], dim=1).to(model.device)
    written = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=16, do_sample=False)
    result["2024-05-17"] = tokenizer.decode(written[0, start.shape[1] :], skip_special_tokens=True)
    (options.outputs / "eval.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"accuracy {result['eval_accuracy']:.3f}; 2024-05-17 is {result['2024-05-17']}")


if __name__ == "__main__":
    main()
