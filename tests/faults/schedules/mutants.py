"""Engines with one plausible mistake each: a simulation that finds none of them would prove nothing."""

import inspect
import sys
from types import ModuleType

from umbel_server.rounds import engine

MUTANTS: dict[str, tuple[str, str]] = {
    "late updates are not dropped after a commit": (
        "            return\n        self.drop_stale()\n        self.select()",
        "            return\n        self.select()",
    ),
    "late updates are not dropped at recovery": ("        turn.drop_stale()\n", ""),
    "an update is folded while the sum is committed": (
        '        if self.state.phase == "committing":\n            return',
        '        if self.state.phase == "nowhere":\n            return',
    ),
    "a round is committed while an update is being folded": ('or state.count("folding"):', "or False:"),
    "the quorum is forgotten at the deadline": ("(folded >= policy.quorum and (over", "(folded and (over"),
    "the quorum is enough before the deadline": ("policy.quorum and (over or not coming))", "policy.quorum)"),
    "a round waits for every device": (
        "if folded >= state.wanted or (",
        "if (folded >= state.wanted and not coming) or (",
    ),
    "the deadline is forgotten": ("self.now >= state.closes\n        coming", "False\n        coming"),
    "an attempt that a pause interrupted is abandoned": (
        "policy.quorum) and state.again:",
        "policy.quorum) and False:",
    ),
    "an attempt that a pause interrupted is opened for ever": ('trouble="", again=False', 'trouble=""'),
    "an attempt that is opened again asks for all anew": ("len(state.work) if state.again else 0", "0"),
    "an attempt that is opened again wants what it did not": ("state.wanted if state.again else", ""),
    "a device contributes twice to a round": ('if state.again and policy.mode == "sync":', "if False:"),
    "fewer devices than the quorum are asked": ("if count >= policy.quorum - kept:", "if count:"),
    "what arrived is folded twice at recovery": (
        "        turn.fold_arrived()\n",
        "        turn.fold_arrived()\n        turn.effects += turn.effects\n",
    ),
    "a repeated upload is folded again": (
        "case events.Uploaded(id=id, examples=examples) if self._is(id, *WITH_DEVICE):",
        "case events.Uploaded(id=id, examples=examples) if id in self.state.work:",
    ),
    "a repeated acceptance undoes an upload": (
        'case events.Accepted(id=id) if self._is(id, "offered"):',
        "case events.Accepted(id=id) if id in self.state.work:",
    ),
    "staleness is not discounted": (
        "weight(work.examples, self.state.version - work.base)",
        "weight(work.examples, 0)",
    ),
    "staleness is counted from the round": (
        "weight(work.examples, self.state.version - work.base)",
        "weight(work.examples, self.state.number - work.base)",
    ),
    "updates staler than the policy lets are folded": (
        "elif staleness > self.state.policy.max_staleness:",
        "elif staleness > self.state.policy.max_staleness + 1:",
    ),
    "late updates are dropped that could be folded": (
        "if not self.state.policy.folds_late and staleness > 0:",
        "if staleness > 0:",
    ),
    "an asynchronous checkpoint has no room": (
        "            arrived = arrived[: max(0, self.state.policy.buffer - ",
        "            arrived = arrived[: max(9**9, self.state.policy.buffer - ",
    ),
    "what is committed stays in the sum": (
        'state.work.values() if work.state != "folded")',
        "state.work.values())",
    ),
    "a commit forgets who is still at work": ('values() if work.state != "folded")', "values() if False)"),
    "an abandoned attempt's folded updates stay": (
        '            ("offered", "accepted", "arrived", "folding", "folded"), "cancelled", f"the round',
        '            ("offered", "accepted"), "cancelled", f"the round',
    ),
    "devices at work are asked again": ("in WITH_DEVICE}\n        if", "in ()}\n        if"),
    "assignment ids repeat after a restart": ("        made=record.made,\n", "        made=0,\n"),
    "the next attempt has the number of the last": (
        "attempt=state.attempt + 1, failures",
        "attempt=state.attempt, failures",
    ),
    "attempts are counted anew at recovery": ("opened else record.attempts,", "opened else 0,"),
    "abandoned attempts are not counted": ("failures = state.failures + 1", "failures = state.failures or 1"),
    "a crash before the pause is noted allows another attempt": (
        "elif opened is None and record.failures >= record.policy.attempts:",
        "elif False:",
    ),
    "a commit does not end the row of failures": ("attempt=0, failures=0, work=kept", "attempt=0, work=kept"),
    "the open round is forgotten at recovery": ("if record.open is not None and", "if False and"),
    "nothing wakes a resting run": ('in ("committing", "ended"):', 'in ("committing", "ended", "resting"):'),
    "devices never run out of time": ("work.overdue(self.now)", "work.overdue(-math.inf)"),
    "the deadline passes one instant late": (
        "work.overdue(self.now)",
        "work.overdue(math.nextafter(self.now, -math.inf))",
    ),
    "states are changed in place": (
        "self.state = replace(self.state, work=self.state.work.put(work))",
        "self.state.work._by_id[work.id] = work",
    ),
    "a paused run's devices go on": ('self.finish_all(WITH_DEVICE, "cancelled", "the run was paused")', "pass"),
    "a finished run's devices go on": (
        'self.finish_all(("offered", "accepted", "arrived", "folding"), "cancelled", "the run has ended")',
        "pass",
    ),
    "a stopped run keeps its updates": (
        '("offered", "accepted", "arrived", "folding", "folded"), "cancelled", "the run was stopped"',
        'WITH_DEVICE, "cancelled", "the run was stopped"',
    ),
    "a refused update stays": ('self.finish(id, "rejected", reason)', "self._drop(id)"),
    "an asynchronous round is abandoned for want of devices": (
        "coming = policy.buffer ",
        "coming = policy.concurrency ",
    ),
    "an asynchronous run asks more devices than it may": (
        "policy.concurrency - state.count(*WITH_DEVICE)",
        "policy.concurrency",
    ),
    "a run goes on after its last round": ('"its last round is committed")\n        if', '"") \n        if'),
    "the rest never grows": ("state.policy.rest(failures)", "state.policy.rest(1)"),
    "weights are the devices' examples of another update": (
        'state="arrived", examples=examples',
        'state="arrived", examples=examples + 1',
    ),
}


def mutant(name: str) -> ModuleType:
    """The engine with the mistake of that name; raises LookupError where the engine no longer reads as it did."""
    old, new = MUTANTS[name]
    source = inspect.getsource(engine)
    if source.count(old) != 1:
        raise LookupError(f"mutant {name!r}: the engine has {source.count(old)} times, not once: {old}")
    module = ModuleType(f"{engine.__name__}_mutant")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source.replace(old, new), f"mutant: {name}", "exec"), module.__dict__)
    return module
