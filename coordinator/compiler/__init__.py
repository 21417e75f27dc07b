"""The plan compiler: from a torch module, loss and optimizer to graphs that any runtime can train.

Needs the `author` extra. Start at `coordinator.compiler.compile.compile_plan`.
"""
