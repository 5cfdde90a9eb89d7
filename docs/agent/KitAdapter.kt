// The phone around Agent.kt for the conformance kit, on a JVM. docs/agent.md describes the variables PHONE_….
package nexmdm

import java.io.File
import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import kotlin.concurrent.thread
import kotlin.system.exitProcess
import org.json.JSONObject

private val ACTIONS = setOf(
    "ping", "launch_app", "stop_app", "ring", "message", "lock", "reboot", "wipe"
)

private fun variable(name: String): String = System.getenv("PHONE_$name")

private object Kit : Device {
    private val file = File(variable("STATE_DIR"), "state.json")

    override fun elapsedMillis() = System.nanoTime() / 1_000_000
    override fun wallMillis() = System.currentTimeMillis() + variable("CLOCK_OFFSET_SECONDS").toLong() * 1000
    override fun load() = if (file.exists()) JSONObject(file.readText()) else JSONObject()

    override fun store(state: JSONObject) {
        val part = File("$file.part")
        part.writeText(state.toString())
        Files.move(part.toPath(), file.toPath(), StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE)
    }

    override fun perform(requestId: String, action: String, params: JSONObject): JSONObject? {
        if (action !in ACTIONS) return null
        File(variable("ACTIONS_FILE")).appendText("$requestId $action\n")
        return JSONObject().put("status", "succeeded")
    }

    override fun pushTarget() = JSONObject(variable("PUSH_TARGET"))
}

fun main() {
    System.setProperty("sun.net.http.retryPost", "false") // The agent itself decides when to repeat a request.
    val rotateAfter = (System.getenv("PHONE_ROTATE_AFTER_SECONDS") ?: "2592000").toLong() * 1000
    val agent = Agent(variable("SERVER_URL"), Kit, rotateAfter)
    while (!agent.isRegistered) {
        try {
            agent.register(variable("ENROLLMENT_TOKEN"), variable("HARDWARE_ID"))
        } catch (refused: Refused) {
            if (refused.status < 500 && refused.status != 429) exitProcess(1)
            Thread.sleep(agent.pauseMillis(refused))
        } catch (error: IOException) {
            Thread.sleep(agent.pauseMillis(null))
        }
    }
    agent.finishInterrupted()
    thread(isDaemon = true) { takePushes(agent) }
    while (true) Thread.sleep(agent.beat())
}

private fun takePushes(agent: Agent) {
    while (true) {
        try {
            val connection = URL(variable("PUSH_URL")).openConnection() as HttpURLConnection
            connection.readTimeout = 60_000
            if (connection.responseCode != 200) continue
            val message = JSONObject(connection.inputStream.use { it.readBytes() }.toString(Charsets.UTF_8))
            agent.take(message.getJSONObject("data"), "push")
            agent.sendReports()
        } catch (error: IOException) {
            Thread.sleep(1000)
        }
    }
}
