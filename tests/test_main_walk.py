"""The main walk, from a scenario to a map and back from a store, gives no warning at all."""

import subprocess
import sys

WALK = """
import simba_lab as sb
scenario = sb.Scenario(
    64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
)
cohort, model = sb.synthesise(scenario), sb.SimBANet((4, 4), seed=0)
run = sb.fit(model, cohort, sb.FitConfig(epochs=1, threads=1), cache=False)
test = cohort.test
sb.evaluate(run.model, test, by="bias")
sb.disparity(run.model, test, by="bias")
sb.twin_effect(run.model, test, effect="bias")
recording = sb.record(run.model, test)
sb.probe(recording, "bias", given="label")
sb.cka(recording, sb.record(model, test))
sb.attribute(run.model, test.where(range(4)), "smooth_grad")
sb.save_cohort(cohort, "store")
assert len(sb.open_cohort("store")) == 64
sb.export_bids(test, "study", twins="bias")
run.save("run")
print(sb.training.Run.load("run", sb.SimBANet((4, 4))).config.epochs)
"""


def test_nothing_on_the_way_warns(tmp_path):
    command = [sys.executable, "-W", "error", "-c", WALK]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "1", run.stderr
