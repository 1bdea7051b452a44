"""The process that speaks with W&B: logs the images and numbers of one file, and ends; needs nothing of fadeviz."""

import json
import sys
from pathlib import Path

import wandb


def main(path: Path) -> None:
    """Log what ``path`` lists: ``id``, ``name``, ``config`` and ``lines``, each a step, scalars and image files."""
    log = json.loads(path.read_text())
    settings = wandb.Settings(
        mode="offline",
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(project="fadeviz", id=log["id"], name=log["name"], config=log["config"], settings=settings)
    for line in log["lines"]:
        images = {key: wandb.Image(str(path.with_name(file))) for key, file in line["images"].items()}
        run.log(line["scalars"] | images, step=line["step"])
    run.finish()
    wandb.teardown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
