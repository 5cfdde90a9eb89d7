"""All scenarios, in the order in which they are played and shown in the table of results."""

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
