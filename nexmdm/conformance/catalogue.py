"""All scenarios by name, in the order of the output."""

from typing import Final

from nexmdm.conformance.scenarios import clock, commands, credentials, enrollment, network

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        *enrollment.SCENARIOS,
        *network.SCENARIOS,
        *commands.SCENARIOS,
        *clock.SCENARIOS,
        *credentials.SCENARIOS,
    )
}
