// Runs JVM clients on cases: `Drive cases.json`; see npm/drive.mjs, which does the same for JavaScript.
import com.google.gson.Gson
import com.google.gson.JsonParser
import com.launchdarkly.eventsource.ConnectStrategy
import com.launchdarkly.eventsource.ErrorStrategy
import com.launchdarkly.eventsource.EventSource
import com.launchdarkly.eventsource.StreamException
import java.io.File
import java.net.URI
import kotlin.concurrent.thread

fun followLaunchDarkly(url: String, from: String, show: (String, String, String) -> Unit): Int {
    var status = 0  // it takes a 204 for a stream that was closed at once, and would ask for ever
    val http = client.newBuilder().addInterceptor { it.proceed(it.request()).also { answer -> status = answer.code } }.build()
    val strategy = object : ErrorStrategy() {
        override fun apply(exception: StreamException) =
            Result(if (status == 204 || status in 400..499) Action.THROW else Action.CONTINUE, null)
    }
    val connect = ConnectStrategy.http(URI(url)).httpClient(http)
    EventSource.Builder(connect).lastEventId(from).errorStrategy(strategy).build().use { events ->
        try {
            for (event in events.messages()) {
                show(event.lastEventId, event.eventName, event.data)
                if (event.eventName in setOf("done", "error", "cancelled")) return 200
            }
        } catch (refused: StreamException) {
            return status
        }
    }
    return 0
}

fun main(arguments: Array<String>) {
    client.dispatcher.maxRequests = 1000
    client.dispatcher.maxRequestsPerHost = 1000
    val gson = Gson()
    fun write(line: Map<String, Any?>) = synchronized(gson) { println(gson.toJson(line)) }
    JsonParser.parseString(File(arguments[0]).readText()).asJsonArray.map { each ->
        val case = each.asJsonObject["case"].asString
        val (client, url, cursor) = listOf("client", "url", "cursor").map { each.asJsonObject[it].asString }
        thread {
            val show = { id: String, kind: String, data: String -> write(mapOf("case" to case, "id" to id, "kind" to kind, "data" to data)) }
            try {
                val status = if (client == "okhttp-sse") follow(url, cursor, show) else followLaunchDarkly(url, cursor, show)
                write(mapOf("case" to case, "how" to status))
            } catch (failed: Throwable) {
                write(mapOf("case" to case, "failed" to "$failed"))
            }
        }
    }.forEach { it.join() }
    System.exit(0)
}
