"""A program in namespaces of its own whose only way out is a door: `wardline run --contain`.

    wardline run (outside)  ──►  a process that makes the namespaces (inside)  ──►  process 1 in them  ──►  the program
            │                                    │ a listening socket of the new network                     │ 127.0.0.1
            └──►  the relay, outside  ◄──────────┘                                                           │
                      │   ▲──────────────────────────────────────────────────────────────────────────────────┘
                      └───┴─ adds the credential ──►  the door's unix socket

`begin` judges first: `handles` what the program inherits and `view` what it will see. It becomes `outside`, which starts the
three, passes signals on and ends with the program's exit code. `inside` makes the namespaces through `kernel`, the system calls
that Python lacks, and puts `syscalls` over what no namespace keeps apart; `why` says what on this system does not allow it.
`relay` speaks with the door.

The order is that of trust: `inside` starts from nothing but a plan without secrets, so that no memory of ours reaches the
program.
"""
