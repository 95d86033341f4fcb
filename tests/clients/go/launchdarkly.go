package main

import (
	"context"
	"net/http"

	"github.com/launchdarkly/eventsource"
)

func followLaunchDarkly(ctx context.Context, url, cursor string, show func(id, kind, data string)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	var refused error
	stream, err := eventsource.SubscribeWithRequestAndOptions(request, eventsource.StreamOptionLastEventID(cursor),
		eventsource.StreamOptionCanRetryFirstConnection(-1), // else the app must come back itself
		eventsource.StreamOptionErrorHandler(func(err error) (result eventsource.StreamErrorHandlerResult) {
			if _, result.CloseNow = err.(eventsource.SubscriptionError); result.CloseNow {
				refused = err
			}
			return
		}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for event := range stream.Events {
		id := event.(interface{ LastEventID() string }).LastEventID()
		show(id, event.Event(), event.Data())
		if kind := event.Event(); kind == "done" || kind == "error" || kind == "cancelled" {
			return nil
		}
	}
	return refused
}
