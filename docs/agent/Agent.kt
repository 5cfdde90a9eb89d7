// An agent for NexMDM in Kotlin. docs/agent.md explains its rules.
// It uses only what Android has (API level 26) and what a JVM has together with org.json: so the conformance kit can
// drive it, through KitAdapter.kt. On a phone, call `beat` from an alarm, and `take` from onMessageReceived.
package nexmdm

import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import java.security.MessageDigest
import java.time.Instant
import javax.crypto.Mac
import javax.crypto.spec.SecretKeySpec
import kotlin.math.pow
import kotlin.random.Random
import org.json.JSONException
import org.json.JSONObject

/** The phone around the agent. */
interface Device {
    /** Milliseconds since boot, sleep included: SystemClock.elapsedRealtime(). Nobody can set this clock. */
    fun elapsedMillis(): Long
    /** Milliseconds since 1970 by the clock that the user can set: System.currentTimeMillis(). */
    fun wallMillis(): Long
    /** What must survive a restart, encrypted by a key in the Keystore; empty at first. */
    fun load(): JSONObject
    /** Store it, as a whole or not at all, before returning. */
    fun store(state: JSONObject)
    /** Carry out an action, and return `status` and `message`; null: the action is unknown. */
    fun perform(requestId: String, action: String, params: JSONObject): JSONObject?
    /** Where FCM reaches this phone: `kind`, `value`, `registered_at`. */
    fun pushTarget(): JSONObject
}

class Refused(val status: Int, val code: String, val retryAfter: Int) : Exception("$status $code")

private val SIGNED = listOf("request_id", "action", "params", "issued_at", "expires_at")
private const val DAY_MILLIS = 86_400_000L

class Agent(private val url: String, private val device: Device, private val rotateAfterMillis: Long) {
    private val state = device.load().apply { if (!has("reports")) put("reports", JSONObject()) }
    private val reports get() = state.getJSONObject("reports")
    private val openFrom = HashMap<String, Long>()
    private var failures = 0
    private var refusals = 0
    private var aheadMillis = device.wallMillis() - device.elapsedMillis() + state.optLong("wall_behind")

    val isRegistered get() = state.has("current")

    private fun now() = device.elapsedMillis() + aheadMillis

    @Synchronized private fun learnTime(serverTime: String) {
        aheadMillis = Instant.parse(serverTime).toEpochMilli() - device.elapsedMillis()
        state.put("wall_behind", now() - device.wallMillis())
    }

    /** Send one request. Throws Refused, and IOException if no answer came. */
    private fun call(path: String, body: JSONObject, bearer: String): JSONObject {
        val closed = maxOf(openFrom[path] ?: 0, openFrom[""] ?: 0) - device.elapsedMillis()
        if (closed > 0) throw Refused(429, "not_yet", (closed / 1000 + 1).toInt())
        val connection = URL(url + path).openConnection() as HttpURLConnection
        connection.requestMethod = "POST"
        connection.connectTimeout = 10_000
        connection.readTimeout = 30_000
        connection.doOutput = true
        connection.instanceFollowRedirects = false // A captive portal must not get the token.
        connection.setRequestProperty("Authorization", "Bearer $bearer")
        connection.setRequestProperty("Content-Type", "application/json")
        connection.outputStream.use { it.write(body.toString().toByteArray()) }
        val status = connection.responseCode
        val text = (if (status < 400) connection.inputStream else connection.errorStream)
            ?.use { it.readBytes() }?.toString(Charsets.UTF_8) ?: ""
        val isProblem = connection.contentType?.startsWith("application/problem+json") ?: false
        if (status != 200 && !isProblem) throw IOException("$status, but no problem details")
        val answer = try {
            JSONObject(text)
        } catch (error: JSONException) {
            throw IOException("$status, but no JSON", error)
        }
        if (status == 200) return answer
        val retryAfter = connection.getHeaderFieldInt("Retry-After", 0)
        if (retryAfter > 0) { // A 429 closes its own call until then, a 503 closes all of them.
            val pause = retryAfter * 1000L + Random.nextLong(0, 1000 + retryAfter * 100L)
            openFrom[if (status == 503) "" else path] = device.elapsedMillis() + pause
        }
        throw Refused(status, answer.optString("code"), retryAfter)
    }

    /** The credentials, the newest first: two from a rotation until the new token's first 200. */
    private fun pairs() = listOfNotNull(state.optJSONObject("next"), state.getJSONObject("current"))

    /** Send a request as this device. */
    private fun say(path: String, body: JSONObject): JSONObject {
        val pair = pairs().first()
        val isNew = pair === state.optJSONObject("next")
        val answer = try {
            call(path, body, pair.getString("device_token"))
        } catch (refused: Refused) {
            if (refused.status != 401 || !isNew) throw refused
            state.remove("next")
            return say(path, body)
        }
        synchronized(this) {
            if (pair === state.optJSONObject("next")) state.put("current", pair).remove("next")
        }
        return answer
    }

    private fun pairIn(answer: JSONObject) = JSONObject().put("device_token", answer.getString("device_token"))
        .put("command_key", answer.getString("command_key")).put("since", now())

    /** Register. Repeat it after IOException, 5xx and 429; any other refusal needs a person. */
    @Synchronized fun register(enrollmentToken: String, hardwareId: String) {
        val body = withPushTarget(JSONObject().put("hardware_id", hardwareId))
        val answer = call("/v1/register", body, enrollmentToken)
        learnTime(answer.getString("server_time"))
        state.put("device_id", answer.getString("device_id")).put("current", pairIn(answer))
        state.put("interval", answer.getInt("heartbeat_interval_seconds"))
        failures = 0
        device.store(state)
    }

    /** Send a heartbeat, carry out its commands, report. Return the milliseconds until the next one, in any case. */
    fun beat(): Long = try {
        rotateIfDue()
        val status = JSONObject().put("battery_pct", 90)
        val answer = say("/v1/heartbeat", withPushTarget(JSONObject().put("status", status)))
        learnTime(answer.getString("server_time"))
        failures = 0
        refusals = 0
        val commands = answer.getJSONArray("commands")
        val took = (0 until commands.length()).map { take(commands.getJSONObject(it), "heartbeat") }
        forgetOldReports()
        sendReports()
        if (answer.getBoolean("has_more") && took.any { it }) 0 else answer.getInt("next_heartbeat_seconds") * 1000L
    } catch (refused: Refused) {
        pauseMillis(refused)
    } catch (error: IOException) {
        pauseMillis(null)
    }

    /** The wait after a failure: Retry-After; long after 401 and 403; else 1 s, 2 s, 4 s … at most 5 minutes. */
    fun pauseMillis(refused: Refused?): Long {
        if (refused != null && refused.retryAfter > 0) {
            val closed = maxOf(openFrom["/v1/heartbeat"] ?: 0, openFrom[""] ?: 0) - device.elapsedMillis()
            return maxOf(refused.retryAfter * 1000L, closed)
        }
        val longest = if (refused?.status in listOf(401, 403)) {
            minOf(3600.0, state.optInt("interval", 120) * 2.0.pow(++refusals))
        } else {
            minOf(300.0, 2.0.pow(failures++))
        }
        return (longest * 1000 * Random.nextDouble(0.5, 1.0)).toLong()
    }

    /** Ask for a new pair with the old token, and store it before it is used. Until then the old pair works. */
    private fun rotateIfDue() = quietly {
        val current = state.getJSONObject("current")
        if (!state.has("next") && now() - current.getLong("since") >= rotateAfterMillis) {
            val answer = call("/v1/token/rotate", JSONObject(), current.getString("device_token"))
            synchronized(this) {
                state.put("next", pairIn(answer))
                device.store(state)
            }
        }
    }

    private fun trusts(envelope: JSONObject): Boolean {
        if (!(SIGNED + "signature").all { envelope.opt(it) is String }) return false
        val lines = listOf("NXC1", state.getString("device_id")) + SIGNED.map { envelope.getString(it) }
        return pairs().any {
            val mac = Mac.getInstance("HmacSHA256")
            mac.init(SecretKeySpec(it.getString("command_key").toByteArray(), "HmacSHA256"))
            val digest = mac.doFinal(lines.joinToString("\n").toByteArray())
            val good = digest.joinToString("") { byte -> "%02x".format(byte) }
            MessageDigest.isEqual(good.toByteArray(), envelope.getString("signature").toByteArray())
        }
    }

    /** Carry out a command once; a repeat gets the last report again. False: it is not signed for this phone. */
    fun take(envelope: JSONObject, via: String): Boolean {
        val requestId = envelope.optString("request_id")
        val report = JSONObject().put("request_id", requestId).put("status", "running").put("via", via)
        val record = synchronized(this) {
            if (!trusts(envelope)) return false
            reports.optJSONObject(requestId)?.let {
                it.put("unsent", true)
                return true
            }
            val expires = Instant.parse(envelope.getString("expires_at")).toEpochMilli()
            val begun = JSONObject().put("report", report).put("action", envelope.getString("action"))
            reports.put(requestId, begun.put("expires", expires).put("unsent", false))
            device.store(state)
            begun
        }
        val done = outcome(envelope, record.getLong("expires"))
        synchronized(this) {
            val last = JSONObject().put("request_id", requestId).put("via", via).put("status", done.getString("status"))
            last.put("message", done.optString("message")).put("finished_at", Instant.ofEpochMilli(now()).toString())
            record.put("report", last).put("unsent", true)
            device.store(state)
        }
        return true
    }

    private fun outcome(envelope: JSONObject, expires: Long): JSONObject {
        val failed = JSONObject().put("status", "failed")
        if (now() >= expires) return failed.put("message", "expired")
        val action = envelope.getString("action")
        return device.perform(envelope.getString("request_id"), action, JSONObject(envelope.getString("params")))
            ?: failed.put("message", "unknown action")
    }

    /** Call it once after a start: what was begun has failed, unless it was the restart itself. */
    @Synchronized fun finishInterrupted() {
        for (record in records()) {
            val report = record.getJSONObject("report")
            if (report.getString("status") == "running") {
                val status = if (record.getString("action") == "reboot") "succeeded" else "failed"
                report.put("status", status).put("message", "the agent was restarted")
                record.put("unsent", true)
            }
        }
        device.store(state)
    }

    private fun requestIds() = reports.keys().asSequence().map { it.toString() }.toList()
    private fun records() = requestIds().map { reports.getJSONObject(it) }

    /** A request id is kept until a day after its expires_at: until then a repeat may come. */
    @Synchronized private fun forgetOldReports() {
        for (id in requestIds()) {
            if (reports.getJSONObject(id).getLong("expires") + DAY_MILLIS < now()) reports.remove(id)
        }
        device.store(state)
    }

    /** Send each report that was not answered yet. What fails now is sent after the next heartbeat. */
    fun sendReports() = quietly {
        val unsent = synchronized(this) {
            records().filter { it.getBoolean("unsent") }.map { it to it.getJSONObject("report") }
        }
        for ((record, report) in unsent) {
            try {
                say("/v1/action-result", report)
            } catch (refused: Refused) {
                if (refused.status !in listOf(404, 413, 422)) throw refused
            }
            synchronized(this) {
                record.put("unsent", record.getJSONObject("report") !== report)
                device.store(state)
            }
        }
    }

    private fun withPushTarget(body: JSONObject) = device.pushTarget().let {
        if (it.getString("kind") == "token") body.put("push_token", it.getString("value"))
        body.put("push_target", it)
    }

    private fun quietly(work: () -> Unit) {
        try {
            work()
        } catch (refused: Refused) {
        } catch (error: IOException) {
        }
    }
}
