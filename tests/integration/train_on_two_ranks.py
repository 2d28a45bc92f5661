"""Trains a tiny model on two CPU processes and writes down what each of them saw: ``python FILE FOLDER OPTIONS``."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_model, build_samples

from sparsegate.config import TrainingConfig
from sparsegate.data.datamodule import IGNORED
from sparsegate.sparse.layers import sparse_layers
from sparsegate.training.run import train


class Wire(Callback):
    """Keeps what the processes exchange after each batch, and what this one trains on."""

    def __init__(self):
        self.gradient_bytes = []
        self.buffers_are_sent = []
        self.ids = {}
        self.samples = []

    def on_train_start(self, trainer, pl_module):
        def reduce(state, bucket):
            self.gradient_bytes[-1] += bucket.buffer().numel() * bucket.buffer().element_size()
            bucket.buffer().div_(dist.get_world_size())
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        trainer.strategy.model.register_comm_hook(None, reduce)
        self.ids = {name: layer.support.ids.tolist() for name, layer in sparse_layers(pl_module.model).items()}
        self.num_trainable = pl_module.num_trainable

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.gradient_bytes.append(0)
        self.buffers_are_sent.append(trainer.strategy.model.will_sync_module_buffers())
        self.samples.append(batch["ids"] if (batch["labels"] != IGNORED).any() else [])


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    count = options.pop("count")
    wire = Wire()
    outcome = train(
        build_model(),
        build_samples(count),
        validation=build_samples(5, prefix="v", seed=1),
        config=TrainingConfig(accelerator="cpu", devices=2, strategy="ddp", **options),
        pad_id=0,
        base_digest="abc",
        output_dir=folder / "run",
        callbacks=[wire],
    )
    seen = {
        "ids": wire.ids,
        "gradient_bytes": wire.gradient_bytes,
        "buffers_are_sent": wire.buffers_are_sent,
        "num_trainable": wire.num_trainable,
        "samples": wire.samples,
        "metrics": outcome.metrics,
        "steps": outcome.cost.steps,
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
