# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Deformable registration within 3D Slicer, by the command line of monai-nodeo in an environment of its own."""

from __future__ import annotations

import shlex

import ctk
import qt
from MonaiNodeoLib.command import PRESETS, RegistrationProcess, command_of
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

import slicer

VOLUME, LABEL, MARKUPS = "vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode", "vtkMRMLMarkupsFiducialNode"
NODES = {  # role -> what it is called, class of its nodes
    "fixed": ("Fixed volume", VOLUME),
    "moving": ("Moving volume", VOLUME),
    "fixed_label": ("Fixed labels", LABEL),
    "moving_label": ("Moving labels", LABEL),
    "fixed_landmarks": ("Fixed points", MARKUPS),
    "moving_landmarks": ("Moving points", MARKUPS),
}
POLL_MS = 200


class MonaiNodeo(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Registration (monai_nodeo)"
        parent.categories = ["Registration"]
        parent.dependencies = []
        parent.contributors = ["monai_nodeo contributors"]
        parent.helpText = (
            "Registers the moving volume to the fixed one by a flow. Calls monai-nodeo, which is installed in an "
            "environment of its own, in the folder of the repository: python -m venv nodeo; nodeo/bin/pip install . "
            "(Windows: nodeo\\Scripts\\pip)."
        )
        parent.acknowledgementText = "Not a medical device."


class MonaiNodeoWidget(ScriptedLoadableModuleWidget):
    """The panel of the module."""

    def setup(self):
        """Called by Slicer once, when the module is opened."""
        ScriptedLoadableModuleWidget.setup(self)
        form = qt.QFormLayout()
        self.layout.addLayout(form)

        self.selectors = {}
        for role, (name, kind) in NODES.items():
            selector = slicer.qMRMLNodeComboBox()
            selector.nodeTypes = [kind]
            selector.showChildNodeTypes = False
            selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
            selector.noneEnabled = role not in ("fixed", "moving")
            selector.setMRMLScene(slicer.mrmlScene)
            form.addRow(f"{name}:", selector)
            self.selectors[role] = selector

        self.preset = qt.QComboBox()
        self.preset.addItems(["default", *PRESETS])
        form.addRow("Preset:", self.preset)

        self.options = qt.QLineEdit()
        self.options.placeholderText = "further options, such as --use-labels"
        form.addRow("Options:", self.options)

        self.program = ctk.ctkPathLineEdit()
        self.program.filters = ctk.ctkPathLineEdit.Files | ctk.ctkPathLineEdit.Executable
        self.program.settingKey = "MonaiNodeo/Program"
        self.program.toolTip = "monai-nodeo, or the python, of the environment where monai-nodeo is installed"
        form.addRow("monai-nodeo:", self.program)

        self.output = ctk.ctkPathLineEdit()
        self.output.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Writable
        self.output.toolTip = "folder for the report and all results; empty: they are loaded and not kept"
        form.addRow("Keep results in:", self.output)

        self.register = qt.QPushButton("Register")
        self.register.connect("clicked()", self.onRegister)
        self.cancel = qt.QPushButton("Cancel")
        self.cancel.connect("clicked()", self.onCancel)
        form.addRow(self.register)
        form.addRow(self.cancel)

        self.lines = qt.QPlainTextEdit()
        self.lines.readOnly = True
        form.addRow(self.lines)
        self.layout.addStretch(1)

        self.logic = MonaiNodeoLogic(self.lines.appendPlainText)
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.onPoll)
        self.showRunning()

    def cleanup(self):
        """Called by Slicer when it closes or reloads the module."""
        self.timer.stop()
        self.logic.cancel()

    def onRegister(self):
        """Start."""
        self.lines.clear()
        with slicer.util.tryWithErrorDisplay("The registration could not be started.", waitCursor=True):
            self.program.addCurrentPathToHistory()
            self.logic.command = command_of(self.program.currentPath)
            self.logic.start(
                {role: selector.currentNode() for role, selector in self.selectors.items()},
                None if self.preset.currentText == "default" else self.preset.currentText,
                self.output.currentPath or None,
                shlex.split(self.options.text),
            )
        self.showRunning()

    def onCancel(self):
        """Kill the process."""
        self.logic.cancel()
        self.lines.appendPlainText("cancelled")
        self.showRunning()

    def onPoll(self):
        """Show new lines; at the end, the warped volume over the fixed one."""
        with slicer.util.tryWithErrorDisplay("The registration has failed."):
            nodes = self.logic.poll()
            if nodes:
                slicer.util.setSliceViewerLayers(
                    background=self.selectors["fixed"].currentNode(), foreground=nodes["volume"], foregroundOpacity=0.5
                )
        self.showRunning()

    def showRunning(self):
        """Buttons and timer as they have to be."""
        running = self.logic.running
        self.register.enabled, self.cancel.enabled = not running, running
        if running:
            self.timer.start()
        else:
            self.timer.stop()


class MonaiNodeoLogic(RegistrationProcess):
    """Saves and loads nodes as Slicer does it."""

    def __init__(self, say=print):
        # without Slicer's libraries and its Python, which are not those of the program
        super().__init__(["monai-nodeo"], save_node, load_node, say, slicer.util.startupEnvironment())


def save_node(node, path):
    """Write a node as it lies in the world, with the transforms that it is under."""
    if not slicer.util.exportNode(node, path, world=True):
        raise RuntimeError(f"{node.GetName()} cannot be written to {path}.")


def load_node(kind, path):
    """Load a result. Its file may go, so that the node forgets it and is saved with the scene."""
    load = {"volume": slicer.util.loadVolume, "label": slicer.util.loadLabelVolume}
    node = load.get(kind, slicer.util.loadTransform)(path)
    storage = node.GetStorageNode()
    if storage:
        slicer.mrmlScene.RemoveNode(storage)
    return node
