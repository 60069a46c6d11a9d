"""The demo's steps in order: each does one thing with the product's own commands and asserts what it claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_sync.demo import config, scenes
from cloud_sync.demo.line import Line, claim
from cloud_sync.demo.processes import edge
from cloud_sync.demo.trainer import convert_command

MODEL = "digits"
GENERIC, MACHINE = "generic-cpu", "this-machine"
RUNTIMES = {GENERIC: "onnxruntime", MACHINE: "openvino"}
ACCURATE = 0.9
QUIET_VERDICTS = 3
DRIFTED = ("drifted", "likely_harm")


@dataclass(frozen=True, slots=True)
class Step:
    """`run` returns what it found, in a few words, or raises the EdgeError that fails the demo."""

    name: str
    title: str
    run: Callable[[Line], str]


def train(line: Line) -> str:
    report = line.run([config.trainer("first", "--out", line.root / "model")], "torch, one core")[0]
    accuracy, n = report["accuracy"], report["n"]
    claim(accuracy >= ACCURATE, f"the model names {accuracy:.1%} of {n} held-out digits, expected {ACCURATE:.0%}")
    return f"{accuracy:.1%} of {n} frames with held-out digits"


def convert(line: Line) -> str:
    """The probed machine gets OpenVINO, so that both runtimes are shown."""
    probed = line.root / "this-machine.toml"
    line.edge("profile", "probe", "--name", MACHINE, "--out", probed)
    line.profiles = {GENERIC: GENERIC, MACHINE: str(probed)}
    model, data, out = line.root / "model" / "model.onnx", line.root / "model" / "data", line.root / "artifacts"
    commands = [
        convert_command(model, data, out, line.profiles[name], "1.0.0", "--runtime", runtime)
        for name, runtime in RUNTIMES.items()
    ]
    answers = line.run(commands, "search, verify, pack")
    said = []
    for name, answer in zip(RUNTIMES, answers, strict=True):
        artifact = answer["artifacts"][0]
        chosen = artifact["chosen"]
        claim(artifact["profile"] == name, f"asked for profile {name}, got {artifact['profile']}")
        claim(chosen["runtime"] == RUNTIMES[name], f"{name} runs on {chosen['runtime']}, expected {RUNTIMES[name]}")
        claim(chosen["metric"]["drop"] <= 0.01, f"{name} lost {chosen['metric']['drop']:.3f} of its accuracy")
        line.artifacts.setdefault("1.0.0", []).append(Path(artifact["path"]))
        line.digests.setdefault("1.0.0", set()).add(artifact["digest"])
        said.append(f"{name}: {chosen['runtime']} {chosen['precision']} {chosen['latency_ms']['p50']:.2f} ms")
    return ", ".join(said)


def serve(line: Line) -> str:
    command = config.trainer("retrain", "--base", line.root / "model", "--camera", line.cameras.address)
    for name, path in line.profiles.items():
        command += ["--profile", path, "--runtime", RUNTIMES[name]]
    settings = line.root / "serve.toml"
    settings.write_text(config.serve_toml(command))
    words = ["--config", settings, "--data", line.root / "service", "--broker", line.broker, "--port", line.port]
    about = line.start_service([str(w) for w in words])
    return f"console {about['url']}, broker {about['broker']}"


def enrol(line: Line) -> str:
    commands = []
    for number in range(1, config.DEVICES + 1):
        device = f"cam-{number}"
        line.devices[device] = GENERIC if number % 2 else MACHINE
        added = line.edge("device", "add", device, "--profile", line.devices[device])
        state = line.root / "devices" / device
        state.mkdir(parents=True)
        commands.append(edge("enroll", "--server", line.url, "--state-dir", state / "state", added["token"]))
        (state / "pipeline.toml").write_text(config.pipeline_toml(line.cameras.url(device)))
        agent = config.agent_toml(
            server=line.url, device=device, state_dir=state / "state", pipeline=state / "pipeline.toml"
        )
        (state / "agent.toml").write_text(agent)
    line.run(commands, "claim token to identity")
    for device in line.devices:
        line.start_agent(device, line.root / "devices" / device / "agent.toml")

    def online() -> tuple[bool, str]:
        count = sum(bool(d["online"]) for d in line.fleet())
        return count == config.DEVICES, f"{count} of {config.DEVICES} agents online"

    return line.until(online, within_s=150, what="five agents online")


def release(line: Line) -> str:
    """Nothing runs on the devices yet that could be broken, so all of them are in one stage."""
    said = _publish(line, "1.0.0")
    _follow(line, _create_rollout(line, "1.0.0", "--stages", "100"), "COMPLETE", within_s=240)
    _claim_running(line, "1.0.0", set(line.devices))
    return f"{said}, in one stage"


def telemetry(line: Line) -> str:
    def flowing() -> tuple[bool, str]:
        counts = {d: len(line.windows(d)) for d in line.devices}
        return min(
            counts.values()
        ) >= 2, f"{sum(counts.values())} windows from {sum(map(bool, counts.values()))} devices"

    line.until(flowing, within_s=150, what="two telemetry windows of each device")
    frames = errors = 0
    for device in line.devices:
        for event in line.windows(device):
            frames += event["counters"]["processed"]
            errors += event["counters"]["errors"]
            claim(event["model"] in line.digests["1.0.0"], f"{device} runs {event['model'][:12]}, not release 1.0.0")
    dropped = sum(d["outbox"]["dropped"] or 0 for d in line.fleet())
    claim(errors == 0 and dropped == 0, f"{errors} frames failed and {dropped} events were dropped, expected none")
    return f"{frames} frames reported by {len(line.devices)} devices, 0 failed, 0 dropped"


def quiet(line: Line) -> str:
    """Without a change there must be verdicts on every device, and none of them drift."""
    seen: dict[str, set[float]] = {device: set() for device in line.devices}

    def judged() -> tuple[bool, str]:
        for row in line.client.get("/api/v1/drift")["verdicts"]:
            if row["p"] is not None and row["device"] in seen:
                seen[row["device"]].add(row["t"])
            claim(row["state"] not in DRIFTED, f"drift on {row['device']} ({row['kind']}) though nothing changed")
        return min(map(len, seen.values())) >= QUIET_VERDICTS, f"{sum(map(len, seen.values()))} verdicts, no drift"

    line.until(judged, within_s=240, what=f"{QUIET_VERDICTS} drift verdicts of each device")
    states = Counter(row["state"] for row in line.edge("drift", "show")["verdicts"])
    claim(not any(states[s] for s in DRIFTED), f"`edge drift show` says {dict(states)} though nothing changed")
    return f"baselines learned, then {sum(map(len, seen.values()))} judgements without drift"


def change(line: Line) -> str:
    """The service starts a retraining by itself as soon as enough devices have drifted."""
    line.cameras.light = scenes.DUSK

    def drifted() -> tuple[bool, str]:
        rows = line.client.get("/api/v1/drift")["verdicts"]
        bad = {row["device"] for row in rows if row["state"] in DRIFTED and row["device"] in line.devices}
        harmed = {row["device"] for row in rows if row["state"] == "likely_harm"}
        text = f"{len(bad)} of {config.DEVICES} devices drifted, likely harm on {len(harmed)}"
        return len(bad) == config.DEVICES and len(harmed) >= 1, text

    text = line.until(drifted, within_s=240, what="drift on all devices")
    shown = {row["state"] for row in line.edge("drift", "show")["verdicts"]}
    claim(bool(shown & set(DRIFTED)), f"`edge drift show` says {sorted(shown)}")
    return text


def retrain(line: Line) -> str:
    """The service's own trigger starts it; nobody asks for it."""
    runs: list[dict[str, Any]] = []

    def released() -> tuple[bool, str]:
        runs[:] = line.client.get("/api/v1/retrain")["runs"]
        if not runs:
            return False, "waiting for the trigger"
        state, error = runs[0]["state"], runs[0]["error"]
        claim(state not in ("REFUSED", "FAILED", "TIMED_OUT"), f"retraining is {state}: {error}")
        return bool(runs[0]["rollout"]), f"{state.lower()}, because of {runs[0]['reason']}"

    line.until(released, within_s=400, what="a retrained release")
    run = line.edge("retrain", "show", runs[0]["run"])
    gate = run["gate"][0]
    claim(gate["candidate"] > gate["production"], f"the gate let {gate['candidate']} pass over {gate['production']}")
    line.rollouts["2.0.0"] = run["rollout"]
    targets = line.client.get(f"/api/v1/releases/{run['release']}")["targets"]
    line.digests["2.0.0"] = {t["sha256"] for t in targets}
    return f"{gate['metric']} {gate['production']:.1%} -> {gate['candidate']:.1%}, signed {run['release']}"


def roll_out(line: Line) -> str:
    text = _follow(line, line.rollouts["2.0.0"], "COMPLETE", within_s=240)
    _claim_running(line, "2.0.0", set(line.devices))
    return text


def catch_bad(line: Line) -> str:
    base = line.root / "bad"
    line.run([config.trainer("bad", "--base", line.root / "model", "--out", base)], "a model that fails in dim light")
    commands = [
        convert_command(base / "model.onnx", base / "data", base, path, "3.0.0", "--precision", "fp32")
        for path in line.profiles.values()
    ]
    for answer in line.run(commands, "it passes its golden set, taken in daylight"):
        artifact = answer["artifacts"][0]
        checked = line.edge("verify", artifact["path"])
        claim(checked["ok"], "the bad release fails its self-test already, so the demo would show nothing")
        line.artifacts.setdefault("3.0.0", []).append(Path(artifact["path"]))
        line.digests.setdefault("3.0.0", set()).add(artifact["digest"])
    _publish(line, "3.0.0")
    rollout = _create_rollout(line, "3.0.0")
    _follow(line, rollout, "ROLLED_BACK", within_s=240)
    shown = line.edge("rollout", "show", rollout)
    told = [d for d in shown["records"] if d["state"] != "QUEUED"]
    claim(shown["stage"] == 0, f"the bad release was caught in stage {shown['stage'] + 1}, expected the first")
    claim(0 < len(told) < config.DEVICES, f"{len(told)} devices were told to take the bad release")
    _claim_running(line, "2.0.0", set(line.devices))
    guard = next((g["name"] for g in shown["guards"] if g["tripped"]), shown["reason"])
    return f"guard `{guard}` in stage 1; {len(told)} devices rolled back, {config.DEVICES - len(told)} never got it"


def _publish(line: Line, version: str) -> str:
    answer = line.edge("publish", *line.artifacts[version], "--model", MODEL, "--version", version)
    claim(len(answer["targets"]) == 2, f"release {answer['release']} has {len(answer['targets'])} targets, expected 2")
    line.releases[version] = answer["release"]
    return f"signed {answer['release']}"


def _create_rollout(line: Line, version: str, *more: str) -> str:
    line.rollouts[version] = line.edge("rollout", "create", "--release", line.releases[version], *more)["id"]
    return line.rollouts[version]


def _follow(line: Line, rollout: str, wanted: str, *, within_s: float) -> str:
    """Wait until a rollout is in its final state `wanted`; another final state fails the demo."""
    passed: list[str] = []

    def moved() -> tuple[bool, str]:
        found = line.client.get(f"/api/v1/rollouts/{rollout}")
        state, stage = found["state"], found["stage"]
        over = state in ("COMPLETE", "ROLLED_BACK", "CANCELLED")
        claim(not over or state == wanted, f"rollout {rollout} is {state}: {found['reason']}")
        share = found["stages"][min(stage, len(found["stages"]) - 1)]
        if state == "RUNNING" and f"{share} %" not in passed:
            passed.append(f"{share} %")
        return state == wanted, f"{state} {' -> '.join(passed)} ({_counted(found['devices'])})"

    line.until(moved, within_s=within_s, what=f"rollout {rollout} {wanted}")
    return f"stages {' -> '.join(passed)}"


def _claim_running(line: Line, version: str, devices: set[str]) -> None:
    """Assert that devices themselves report to run a release, all of them the artifact of their profile."""

    def reported() -> tuple[bool, str]:
        running = [d["id"] for d in line.fleet() if d["id"] in devices and d["digest"] in line.digests[version]]
        return len(running) == len(devices), f"{len(running)} of {len(devices)} devices report release {version}"

    line.until(reported, within_s=90, what=f"release {version} on {len(devices)} devices")


def _counted(devices: dict[str, int]) -> str:
    return ", ".join(f"{n} {state.lower()}" for state, n in devices.items()) or "nobody yet"


STEPS = (
    Step("train", "Train a model in daylight", train),
    Step("convert", "Convert it for two profiles", convert),
    Step("serve", "Start the cloud service", serve),
    Step("enrol", "Enrol five devices", enrol),
    Step("release", "Release 1.0.0 to all of them", release),
    Step("telemetry", "Telemetry reaches the service", telemetry),
    Step("no-drift", "No change, no drift", quiet),
    Step("drift", "Light and lens change: drift", change),
    Step("retrain", "Retrain, gate, release", retrain),
    Step("rollout", "Roll out in stages to 100 %", roll_out),
    Step("bad-release", "Catch a bad release, roll it back", catch_bad),
)


def summary(line: Line, *, kept: bool) -> list[str]:
    """Return lines that say where to look."""
    if not kept:
        return ["nothing was kept: `edge demo --keep DIR` keeps data, artifacts and logs, and the console open"]
    return [
        f"console    {line.url}  (log in with the token in {line.root / 'service' / 'operator.token'})",
        f"artifacts  {line.root / 'artifacts'}  (`edge inspect`, `edge verify`)",
        f"service    {line.root / 'service'}  (database, signed metadata, artifacts by digest)",
        f"devices    {line.root / 'devices'}  (slots, outboxes, pipelines)",
        f"logs       {line.logs}",
    ]
