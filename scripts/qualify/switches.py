"""Which kernels are left out where a test of the training step fails: the fewest with which it passes.

The program reads SECATEUR_WGMMA, a list of what is left out: a block, a direction, or `off` for all kernels for Hopper alone.
"""

from . import job

# Blocks, then directions, by how much of a step each takes.
BLOCKS = ["split", "64x512", "128x256", "64x256", "resident"]
DIRECTIONS = ["weight-gradient", "input-gradient", "forward"]
ANY = [*BLOCKS, *DIRECTIONS, "input-gradient,forward"]

# Modules of tests of what a training step launches, and what may be left out where one fails, narrowest first; `off` comes last for all of
# them. The head, the losses and their like have no kernel for Hopper alone.
STEP_TESTS = {
    "conv_forward": [*BLOCKS, "forward"],
    "conv_input_gradient": [*BLOCKS, "input-gradient"],
    "conv_weight_gradient": ["weight-gradient"],
    "conv_image_gradient": [],
    "attack_loop": ANY,
    "engine_agreement": ANY,
    "first_stage": ANY,
    "graphs": ANY,
    "paired_passes": ANY,
    "kernel_attack": [],
    "kernel_data": [],
    "kernel_head": [],
    "kernel_head_ascent": [],
    "kernel_loss": [],
    "kernel_norm": [],
    "kernel_optimizer": [],
    "kernel_paired_loss": [],
}
# A failure of these says nothing about wgmma; all of them would pass without it.
OFF = "off"


def named(test, switch):
    return f"{test}-without-{switch.replace(',', '-and-')}"


def together(left_out, switch):
    return OFF if switch == OFF else ",".join(filter(None, [left_out, switch]))


def candidates(session, test_job, limit):
    """Each test that failed, only what failed of it, without each of what it may depend on; all of them at once."""
    jobs = []
    for record in session.records("step-tests"):
        test = record["job"]
        if record["result"] not in (job.FAILED, job.TIME_UP) or not STEP_TESTS[test]:
            continue
        failed = job.failed_tests(session.log(test).read_text(errors="replace"))
        for switch in [*STEP_TESTS[test], OFF]:
            left_out = {"SECATEUR_WGMMA": together(session.switches, switch)}
            jobs.append(test_job(named(test, switch), test, limit, failed, env=left_out, about={"test": test, "switch": switch}))
    return jobs


def choose(session):
    """Leaves out the narrowest that mends each failed test, all of them together. What nothing mends stays unproven: it is
    measured all the same, and the figures say so."""
    chosen = set(filter(None, session.switches.split(",")))
    session.unproven = []
    for record in session.records("step-tests"):
        if record["result"] == job.OK or record["result"] == job.NOT_RUN:
            continue
        tried = [other for other in session.records("switches") if other["about"]["test"] == record["job"]]
        mended = [other["about"]["switch"] for other in tried if other["result"] == job.OK]
        if mended:
            chosen.update(mended[0].split(","))
        else:
            session.unproven.append(record["job"])
    session.switches = OFF if OFF in chosen else ",".join(switch for switch in [*BLOCKS, *DIRECTIONS] if switch in chosen)
    if session.switches:
        print(f"from here on without these kernels: SECATEUR_WGMMA={session.switches}", flush=True)


def confirm(session, test_job, limit):
    """Each test that failed and was mended, whole, under all that is left out."""
    if not session.switches:
        return []
    return [test_job(f"{record['job']}-again", record["job"], limit, about={"test": record["job"]})
            for record in session.records("step-tests")
            if record["result"] in (job.FAILED, job.TIME_UP) and record["job"] not in session.unproven]


def confirmed(session):
    """What several failures chose may not suffice together: then all kernels for Hopper alone are left out."""
    again = [record for record in session.records("confirm") if record["result"] != job.OK]
    if not again:
        return
    if session.switches != OFF:
        session.switches = OFF
        print("they fail together all the same: SECATEUR_WGMMA=off from here on", flush=True)
    off = {record["about"]["test"]: record["result"] for record in session.records("switches")
           if record["about"]["switch"] == OFF}
    session.unproven += [record["about"]["test"] for record in again if off.get(record["about"]["test"]) != job.OK]
