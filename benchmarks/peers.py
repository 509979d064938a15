"""The same distillation by other packages, each the way its documentation shows.

All read the batches that the bare loop reads and log nothing, which is generous: their own loops read a
DataLoader and call `.item()` every step.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bare_dmd import AVERAGE, BETAS, DEVIATION, FAST, RATE, Feature, Job, State
from harness import Stopwatch
from problem import ALPHA, DECAY, LR, MOMENTUM, TEMPERATURE, Problem, sgd


def torchdistill(problem: Problem, watch: Stopwatch) -> nn.Module:
    """A distillation box made from a dictionary, on the CPU."""
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    student = problem.student()
    where = {f"{who}_module_path": "." for who in ("student", "teacher")}
    where |= {f"{who}_module_io": "output" for who in ("student", "teacher")}
    loss = {"key": "KDLoss", "kwargs": {**where, "temperature": TEMPERATURE, "alpha": 1 - ALPHA}}
    config = {
        "num_epochs": problem.epochs,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
            "func2extract_model_loss": "extract_model_loss_dict",
        },
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}},
    }
    box = get_distillation_box(
        problem.teacher(), student, {}, config, torch.device("cpu"), None, distributed=False, lr_factor=1
    )
    watch.start()
    box.pre_epoch_process(epoch=0)
    for x, y in problem.batches():
        box.post_forward_process(box.forward_process(x, y, None))
    watch.stop()
    return student


class Featured(nn.Module):
    """A network as mdistiller wants it: logits, and features by name, of which its KD reads none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and nothing beside them."""
        return self.network(x), {}


def mdistiller(problem: Problem, watch: Stopwatch) -> nn.Module:
    """mdistiller's KD in the loop of its trainer, on the CPU."""
    sys.path += [os.environ["MDISTILLER"]] if os.environ["MDISTILLER"] not in sys.path else []
    from mdistiller.distillers.KD import KD

    weights = SimpleNamespace(CE_WEIGHT=1 - ALPHA, KD_WEIGHT=ALPHA)
    config = SimpleNamespace(KD=SimpleNamespace(TEMPERATURE=TEMPERATURE, LOSS=weights))
    student = problem.student()
    distiller = KD(Featured(student), Featured(problem.teacher()), config)
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), LR, MOMENTUM, weight_decay=DECAY)
    distiller.train()
    watch.start()
    for x, y in problem.batches():
        optimizer.zero_grad()
        _, losses = distiller(image=x, target=y, epoch=1)
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
    watch.stop()
    return student


def timm(problem: Problem, watch: Stopwatch) -> nn.Module:
    """timm's task for distilling logits."""
    from timm.task import DistillationTeacher, LogitDistillationTask

    student, teacher = problem.student(), problem.teacher()
    for network in (
        student,
        teacher,
    ):  # timm's own models bring it; equal ones spare the teacher a conversion
        network.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    task = LogitDistillationTask(
        student, DistillationTeacher(teacher), nn.CrossEntropyLoss(), temperature=TEMPERATURE,
        task_loss_weight=1 - ALPHA, distill_loss_weight=ALPHA, device=torch.device("cpu"), verbose=False,
    ).train()  # fmt: skip
    optimizer = sgd(student)
    watch.start()
    for x, y in problem.batches():
        optimizer.zero_grad()
        task(x, y)["loss"].backward()
        optimizer.step()
    watch.stop()
    return student


class Held(nn.Module):
    """A network inside another: modelopt hangs the teacher on the student, which an nn.Sequential would then call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the network says."""
        return self.network(x)


def modelopt(problem: Problem, watch: Stopwatch) -> nn.Module:
    """NVIDIA's modelopt: the student converted to a distillation model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import modelopt.torch.distill as mtd

        config = {
            "teacher_model": problem.teacher(),
            "criterion": mtd.LogitsDistillationLoss(temperature=TEMPERATURE, reduction="batchmean"),
            "loss_balancer": mtd.StaticLossBalancer(kd_loss_weight=ALPHA),
        }
        model = mtd.convert(Held(problem.student()), mode=[("kd_loss", config)])
    model.train()
    optimizer = sgd(model)
    watch.start()
    for x, y in problem.batches():
        optimizer.zero_grad()
        labels = F.cross_entropy(model(x), y)
        model.compute_kd_loss(student_loss=labels).backward()
        optimizer.step()
    watch.stop()
    return mtd.export(model)


# -- distribution matching ----------------------------------------------------------------------------------------

sys.path += [os.environ["FASTGEN"]] if os.environ.get("FASTGEN") else []


def fastgen(job: Job, watch: Stopwatch, fused: bool = True) -> State:
    """NVIDIA's FastGen: its model, optimizers, schedules and moving average, in the loop of its trainer.

    Its own trainer logs, detaches and times as well; here it does not. It draws the Engine's numbers: its calls of
    torch.randn are preceded by the seed of the draw, and its law of times is the job's.
    """
    from fastgen.callbacks.ema import EMACallback
    from loguru import logger

    logger.remove()
    model = _fastgen_model(job, fused)
    # It averages at every iteration, the Engine at the student's: the root makes the two the same average.
    average = EMACallback(type="constant", beta=AVERAGE ** (1 / job.method().period), ema_name="ema")
    average.on_model_init_end(model)
    drawing = Drawing(job)
    model.net.noise_scheduler.sample_t = drawing.times
    watch.start()
    for step, (x, y) in zip(range(job.steps), job.batches(), strict=False):
        drawing.begin(step)
        data = {"real": x, "condition": y, "neg_condition": None}
        losses, outputs = model.single_train_step(data, step + 1)
        model.grad_scaler.scale(losses["total_loss"]).backward()
        model.optimizers_schedulers_step(step + 1)
        model.optimizers_zero_grad(step + 1)
        average.on_training_step_end(model, data, outputs, losses, iteration=step + 1)
    watch.stop()
    found = {"student": model.net.network, "fake": model.fake_score.network, "average": model.ema.network}
    found |= {"discriminator": model.discriminator.heads} if job.method().adversarial else {}
    return {name: list(network.parameters()) for name, network in found.items()}


class Drawing:
    """Has torch's global generator draw what the Engine draws at a step."""

    def __init__(self, job: Job) -> None:
        self.job, self.method = job, job.method()
        self.step = self.draw = 0

    def seed(self) -> None:
        """The next draw."""
        torch.default_generator.manual_seed(self.job.seed_of(self.step, self.draw))
        self.draw += 1

    def begin(self, step: int) -> None:
        """The first draw of a step."""
        self.step, self.draw = step, 0
        self.seed()

    def times(self, n: int, *args: object, **options: object) -> Tensor:
        """Noise levels of the job's law, in float64; the next draw follows."""
        self.seed()
        low, high = self.method.time_low ** (1 / 7), self.method.time_high ** (1 / 7)
        t = (high + torch.rand(n) * (low - high)) ** 7
        self.seed()
        return t.double().clamp(self.method.time_low, self.method.time_high)


def _fastgen_model(job: Job, fused: bool) -> Any:
    """The job's networks behind FastGen's interfaces, in its model."""
    from fastgen.configs.methods import config_dmd2, config_f_distill
    from fastgen.methods import DMD2Model, FdistillModel
    from fastgen.utils import LazyCall

    method = job.method()
    config = config_f_distill.ModelConfig() if method.adversarial else config_dmd2.ModelConfig()
    network, judge = _fastgen_parts(job)
    config.net, config.discriminator = LazyCall(network)(), LazyCall(judge)()
    config.device, config.input_shape, config.use_ema = torch.device("cpu"), list(job.shape), True
    config.student_update_freq, config.gan_loss_weight_gen = method.period, method.gan_weight
    for player in ("net", "fake_score", "discriminator"):
        getattr(config, f"{player}_scheduler").warm_up_steps = [0]
        adam = getattr(config, f"{player}_optimizer")
        adam.lr, adam.weight_decay = RATE * (1 if player == "net" else FAST), 0.0
        adam.betas, adam.fused = BETAS, fused
    if method.adversarial:
        config.f_distill.f_div, config.f_distill.bin_num = method.divergence, method.bins
        config.f_distill.ratio_ema_rate = method.memory
        config.f_distill.ratio_lower, config.f_distill.ratio_upper = method.ratio_low, method.ratio_high
    model = FdistillModel(config) if method.adversarial else DMD2Model(config)
    model.on_train_begin()
    model.init_optimizers()
    return model


def _fastgen_parts(job: Job) -> tuple[type[nn.Module], type[nn.Module]]:
    """The job's network with EDM's preconditioning as FastGen has it, and the job's heads."""
    from fastgen.networks.discriminators import Discriminator
    from fastgen.networks.EDM.network import precond_input, precond_output
    from fastgen.networks.network import FastGenNetwork

    class Network(FastGenNetwork):
        def __init__(self) -> None:
            super().__init__(net_pred_type="x0", schedule_type="edm")
            self.network = job.copy()
            self.feature = Feature(self.network)

        def forward(self, x_t: Tensor, t: Tensor, condition: Any = None, **asked: Any) -> Any:
            inner, time, _ = precond_input(x_t, t, None, DEVIATION, self.noise_scheduler.clamp_min)
            time = time.to(x_t.dtype)
            if asked.get("return_features_early"):
                return [self.feature.early(lambda: self.network(inner, time, condition, None))]
            out = precond_output(self.network(inner, time, condition, None), x_t, t, None, DEVIATION)
            seen = self.feature.take()
            return [out, [seen]] if asked.get("feature_indices") else out

    class Judge(Discriminator):
        def __init__(self) -> None:
            super().__init__({0})
            self.heads = job.heads()

        def forward(self, feats: list[Tensor]) -> Tensor:
            return self.heads(feats)

    return Network, Judge


ARMS = {"torchdistill": torchdistill, "timm": timm, "modelopt": modelopt}


def installed(peer: str) -> bool:
    """Whether the peer can be imported here."""
    return importlib.util.find_spec(peer) is not None
