"""`edge agent --config agent.toml`: the device daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="agent.toml")


def run(args: argparse.Namespace, output: Output) -> int:
    """Keep this device at its desired state until SIGTERM."""
    from edge_sdk.agent.config import AgentConfig
    from edge_sdk.agent.daemon import Agent

    config = AgentConfig.from_toml(args.config)
    agent = Agent(config)
    output.note(f"agent of {config.state_dir} is running, SIGTERM ends it")
    return agent.run()
