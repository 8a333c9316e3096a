"""
Reinforcement learning in torch
===============================

A2C of Stable-Baselines3 learns CartPole by two RMSprops, and by the drop-in for each: curves, share of the step.

A2C takes torch.optim.RMSprop by default; Stable-Baselines3 has RMSpropTFLike besides, for the results of its second
version: another rule, with eps under the root and a square_avg that starts from 1. `policy_kwargs` chooses.

Install what this needs with `pip install torch stable-baselines3 matplotlib tqdm`; torch for the CPU is enough. Run
`python examples/torch_a2c.py`; it saves a figure, torch_a2c.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from optimizer_share import COLORS, StepClock, draw_bars, table
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from tqdm import tqdm

from rmsprop_native.interop.torch import RMSprop

mpl.use("Agg")
import matplotlib.pyplot as plt

Floats = NDArray[np.float64]
ENVIRONMENTS = 4
ROUND = 1000  # steps that an agent takes before it is the other's turn
NUMBERS = {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}  # A2C's own


def policy_kwargs(optimizer_class: Any, **options: Any) -> dict[str, Any]:
    """The argument of A2C that replaces its optimizer."""
    return {"optimizer_class": optimizer_class, "optimizer_kwargs": {**NUMBERS, **options}}


RULES: dict[str, dict[str, dict[str, Any] | None]] = {
    "A2C's default": {"torch": None, "rmsprop_native": policy_kwargs(RMSprop)},
    "RMSpropTFLike": {
        "Stable-Baselines3": policy_kwargs(RMSpropTFLike),
        "rmsprop_native": policy_kwargs(RMSprop, preset="sb3"),
    },
}


class Agent:
    """A2C on CartPole-v1, with random numbers of its own, so that agents may take turns."""

    def __init__(self, chosen: dict[str, Any] | None, seed: int) -> None:
        self.environments = make_vec_env("CartPole-v1", n_envs=ENVIRONMENTS, seed=seed)
        self.model = A2C("MlpPolicy", self.environments, policy_kwargs=chosen, seed=seed, device="cpu")
        self.model.set_logger(Logger(None, []))  # else each round makes a folder for its log
        self.clock = StepClock(self.model.policy.optimizer)
        self.random = torch.get_rng_state()

    def learn(self, steps: int) -> None:
        """A round of that many steps, over all environments together."""
        torch.set_rng_state(self.random)
        with self.clock.round():
            self.model.learn(steps, reset_num_timesteps=False)
        self.random = torch.get_rng_state()

    def episodes(self) -> tuple[Floats, Floats]:
        """For each finished episode the steps taken at its end, in all environments together; and its return."""
        lengths = self.environments.env_method("get_episode_lengths")
        returns = self.environments.env_method("get_episode_rewards")
        ends = np.concatenate([ENVIRONMENTS * np.cumsum(each, dtype=float) for each in lengths])
        order = np.argsort(ends, kind="stable")
        return ends[order], np.concatenate([np.asarray(each, float) for each in returns])[order]


def curve(agent: Agent, at: Floats, episodes: int = 20) -> Floats:
    """The mean return of the last episodes that had ended, at each number of steps; NaN before the first."""
    ends, returns = agent.episodes()
    counts = np.searchsorted(ends, at, side="right")
    return np.array([returns[max(0, n - episodes) : n].mean() if n else np.nan for n in counts])


def plot(agents: dict[str, dict[str, list[Agent]]], steps: int, path: Path) -> None:
    """For each rule the mean return with the range of the seeds, and the time of an update."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained", height_ratios=[3, 1.4])
    at = np.linspace(0, steps, 101)
    for (upper, lower), (rule, pair) in zip(axes.T, agents.items(), strict=True):
        for (name, group), style, width in zip(pair.items(), ["-", "--"], [4.0, 1.5], strict=True):
            curves = np.array([curve(agent, at) for agent in group])
            known = ~np.isnan(curves).any(axis=0)
            x, curves = at[known] / 1000, curves[:, known]
            color = COLORS[name] if name == "rmsprop_native" else "0.7"
            upper.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0)
            upper.plot(x, curves.mean(axis=0), style, color=color, linewidth=width, label=name)
        upper.set(title=f"{rule}: mean and range, seeds: {len(group)}", ylim=(0, 520))
        upper.set(xlabel="environment steps, thousands", ylabel="return, last 20 episodes")
        upper.legend(frameon=False, loc="upper left")
        upper.spines[["top", "right"]].set_visible(False)
        draw_bars(lower, clocks_of(pair), "one update of A2C")
    figure.suptitle(f"A2C on CartPole-v1, {ENVIRONMENTS} environments")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def clocks_of(pair: dict[str, list[Agent]]) -> dict[str, StepClock]:
    """A clock for each optimizer, with the rounds of all its agents."""
    return {name: StepClock.joined([agent.clock for agent in group]) for name, group in pair.items()}


def parameters(agent: Agent) -> Any:
    """All parameters of the policy, in one vector."""
    return torch.nn.utils.parameters_to_vector(agent.model.policy.parameters()).detach()


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="of all environments together, for each agent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("torch_a2c.png"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks this small gain nothing from more

    agents: dict[str, dict[str, list[Agent]]] = {rule: {name: [] for name in pair} for rule, pair in RULES.items()}
    total = arguments.seeds * len(RULES) * arguments.steps
    with tqdm(total=total, desc="training", unit="step", unit_scale=True) as progress:
        for seed in range(arguments.seeds):
            for rule, pair in RULES.items():
                present = [Agent(chosen, seed) for chosen in pair.values()]
                for start in range(0, arguments.steps, ROUND):
                    steps = min(ROUND, arguments.steps - start)
                    for agent in present:
                        agent.learn(steps)
                    progress.update(steps)
                for name, agent in zip(pair, present, strict=True):
                    agents[rule][name].append(agent)
    plot(agents, arguments.steps, arguments.figure)
    for rule, group in agents.items():
        print(rule)
        print(table(clocks_of(group)))
        for name, seeds in group.items():
            returns = [curve(agent, np.array([arguments.steps]))[0] for agent in seeds]
            print(f"{name}: return of the last 20 episodes, each seed: " + ", ".join(f"{each:.0f}" for each in returns))
        differences = [(parameters(a) - parameters(b)).abs().max().item() for a, b in zip(*group.values(), strict=True)]
        print("largest difference of the parameters, each seed: " + ", ".join(f"{each:.1e}" for each in differences))
        print()
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
