"""Mutants of gatewise.integrations, in what all trainers share."""

from mutants import remove, replace

CHANGES = {
    "integrations/fine_tuning.py": {
        "FineTuning.start": {
            "without gate_epochs a frozen network thaws": replace(
                "fine_tuning_stages(epochs, self.gate_epochs) if self.gate_epochs else []",
                "fine_tuning_stages(epochs, self.gate_epochs)",
            ),
            "a resumed training restarts the budget": replace("not resumed", "True"),
            "optimizers may lack what thaws": replace("len(self._stages) > 1", "False"),
            "gates alone need an optimizer of everything": replace("len(self._stages) > 1", "bool(self._stages)"),
        },
        "FineTuning.begin_epoch": {
            "every epoch begins its stage again": remove("self._stage = stage"),
        },
        "_check_stages_possible": {
            "stages under DDP": replace("distributed", "False"),
        },
        "_check_optimized": {
            "only the first optimizer counts": replace("optimizers", "[*optimizers][:1]"),
            "an optimizer may lack a gater": remove(
                "own |= {id(p) for net in model.modules() if isinstance(net, GaterNet) for p in net.gater.parameters()}"
            ),
        },
    },
    "integrations/gate_log.py": {
        "_noting_gates": {
            "recording of a gater goes on": replace("del net.forward_with_gates", "pass"),
        },
        "GateLog.__init__": {
            "logging changes the mode of the network": remove("keep_mode=True"),
        },
        "GateLog.reset": {
            "batches are counted over all evaluations": remove("self.batches = 0"),
        },
        "GateLog._note": {
            "executed MACs are those of the last images": replace(
                "net.executed_macs(gates)", "net.executed_macs(gates)[-1:]"
            ),
        },
        "GateLog.compute": {
            "statistics have no common prefix": replace("f'gates/{name}'", "name"),
        },
    },
}
