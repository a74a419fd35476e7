"""Everything that runs with CAP_SYS_MODULE, and what the daemon needs to use it. In reading order:

With the capability, under systemd in the sandbox of kmodd-loader@.service:
  spawner_process  forks a loader for each connection that the daemon passes
  worker           carries out the requests of one connection
  protocol         parses those requests; nothing in them is trusted
  trusted_paths    decides which module and configuration files are accepted
  actions          gives a module file to the kernel
  syscalls         finit_module, init_module, delete_module
Of other folders they import `host.signals`, `host.paths`, and what unpacks a compressed module.

With all capabilities and no sandbox, under systemd in kmodd-command@.service:
  command_runner   runs one install or remove command, read from its line in modprobe.d

In the daemon, without the capability:
  spawner          connects to a spawner, or starts one
  pool             one connection for each loader and command runner
  kernel_stack     asks for the kernel stack of a loader
  step_requests    a plan's step as a request, a reply as an outcome
  capabilities     gives up capabilities for good

In a tool, with the rights of its caller:
  in_process       carries out steps with `actions`, without a loader
"""
