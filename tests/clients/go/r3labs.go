package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"
)

// At a cut it hands over the event that was cut, under the id before it or a part of its own; and keeps that id. So what
// does not come after the last whole event is no event, and the cursor is put right.
func followR3labs(ctx context.Context, url, cursor string, show func(id, kind, data string)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	client := sse.NewClient(url, sse.ClientMaxBufferSize(1<<25))
	client.ReconnectStrategy = backoff.WithContext(backoff.NewConstantBackOff(time.Second), ctx)
	client.LastEventID.Store([]byte(cursor))
	refused := fmt.Errorf("ended")
	client.ResponseValidator = func(_ *sse.Client, response *http.Response) error {
		if code := response.StatusCode; code == 204 || code >= 400 && code < 500 {
			refused = fmt.Errorf("status %d", code)
			stop()
		}
		return nil
	}
	last, _ := strconv.Atoi(cursor)
	err := client.SubscribeRawWithContext(ctx, func(event *sse.Event) {
		id, err := strconv.Atoi(string(event.ID))
		if err != nil || id <= last {
			client.LastEventID.Store([]byte(cursor))
			return
		}
		last, cursor = id, string(event.ID)
		show(cursor, string(event.Event), string(event.Data))
		if kind := string(event.Event); kind == "done" || kind == "error" || kind == "cancelled" {
			refused = nil
			stop()
		}
	})
	if ctx.Err() != nil {
		return refused
	}
	return err
}
