"""Train the character model: python train.py --config configs/small.yaml [--lr 1e-3] [--resume FILE]."""

import argparse
import json
import random
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from verse import Verse, Windows, sample


def options():
    """Return the config, with what the command line overrides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    return argparse.Namespace(**(yaml.safe_load(given["config"].read_text()) | {"resume": None} | given))


def mean_loss(model, loader, device):
    """Return the loss of held-out text, in nats a character."""
    model.eval()
    with torch.no_grad():
        losses = [
            cross_entropy(model(given.to(device))[0].flatten(0, 1), wanted.to(device).flatten())
            for given, wanted in loader
        ]
    model.train()
    return torch.stack(losses).mean().item()


def main():
    """Train, evaluate and save."""
    config = options()
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    text = Path(config.data).read_text(encoding="utf-8")
    vocabulary = "".join(sorted(set(text)))
    cut = len(text) * 9 // 10
    shared = {"vocabulary": vocabulary, "window": config.window, "stride": config.stride}
    order = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(
        Windows(text[:cut], noisy=True, **shared),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=config.workers,
        generator=order,
    )
    held_out = DataLoader(Windows(text[cut:], noisy=False, **shared), batch_size=config.batch_size)

    model = Verse(len(vocabulary), config.hidden).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    first = 1
    if config.resume:
        saved = torch.load(config.resume, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        order.set_state(saved["order"].cpu())
        first = saved["epoch"] + 1

    checkpoints = config.outputs / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for epoch in range(first, config.epochs + 1):
        total = 0.0
        for given, wanted in loader:
            loss = cross_entropy(model(given.to(device))[0].flatten(0, 1), wanted.to(device).flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            total += loss.item()
        row = {"epoch": epoch, "loss": total / len(loader), "eval_loss": mean_loss(model, held_out, device)}
        with (config.outputs / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps(row) + "\n")
        print(f"epoch {epoch}: loss {row['loss']:.3f}, held out {row['eval_loss']:.3f}", flush=True)
        state = {
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
        }
        torch.save(state, checkpoints / f"epoch-{epoch}.pt")
        latest = checkpoints / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(f"epoch-{epoch}.pt")

    model.cpu().eval()
    save_file(model.state_dict(), config.outputs / "model.safetensors", {"vocabulary": vocabulary})
    (config.outputs / "sample.txt").write_text(sample(model, vocabulary, "When", 200, config.seed) + "\n")


if __name__ == "__main__":
    main()
