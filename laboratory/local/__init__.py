"""A fleet on one machine, for trying, testing and measuring: real Envoys, a real control loop, emulated distances.

- `launch`, `report`: up and status. `layout` says where everything is and on which ports, `programs` what is started.
- `supervisor`: keeps the programs running; `processes`: how they are started, found and ended; `records`: a fleet's own
  files, which all of these read.
- `standin`: GPU servers that take time and compute nothing, as a program; `gpu` is one of them.
- `client`: sends requests, and says what became of them; `under_test`: a scenario of the simulator on such a fleet.
"""
