import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;

/** The JDK's HttpClient as it comes. It offers h2c with its requests: Connection: Upgrade, HTTP2-Settings. */
public class Stock {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static HttpRequest.Builder to(String url) {
        return HttpRequest.newBuilder(URI.create(url)).header("Content-Type", "application/json");
    }

    public static void main(String[] arguments) throws Exception {
        var streams = arguments[0] + "/v1/streams";
        var body = "{\"producer\": \"external\", \"session_id\": \"java\"}";
        var started = CLIENT.send(to(streams).POST(BodyPublishers.ofString(body)).build(), BodyHandlers.ofString());
        System.out.println(started.statusCode());
        var stream = arguments[0] + started.headers().firstValue("Location").orElseThrow();
        var first = CLIENT.send(to(stream + "/events").build(), BodyHandlers.ofLines());
        var cancel = to(stream + "/cancel").POST(BodyPublishers.ofString("{\"reason\": \"java's own\"}")).build();
        System.out.println(CLIENT.send(cancel, BodyHandlers.ofString()).statusCode());
        List<String> lines = first.body().toList();
        System.out.println(lines.stream().filter(line -> line.startsWith("id: ")).count());
        System.out.println(lines.stream().filter(line -> line.contains("java's own")).count());
        var again = to(stream + "/events").header("Last-Event-ID", "1").build();
        var rest = CLIENT.send(again, BodyHandlers.ofLines()).body().toList();
        System.out.println(rest.stream().filter(line -> line.startsWith("id: ")).count());
    }
}
