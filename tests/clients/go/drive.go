// Runs Go clients on cases: `drive cases.json`; see npm/drive.mjs, which does the same for JavaScript.
package main

import (
	"context"
	"encoding/json"
	"os"
	"sync"
)

type one struct{ Client, Case, URL, Cursor string }

var clients = map[string]func(ctx context.Context, url, cursor string, show func(id, kind, data string)) error{
	"go-sse":       follow,
	"r3labs":       followR3labs,
	"launchdarkly": followLaunchDarkly,
}

func main() {
	file, err := os.ReadFile(os.Args[1])
	var cases []one
	if err == nil {
		err = json.Unmarshal(file, &cases)
	}
	if err != nil {
		panic(err)
	}
	var lock sync.Mutex
	write := func(line map[string]string) {
		lock.Lock()
		defer lock.Unlock()
		json.NewEncoder(os.Stdout).Encode(line)
	}
	var all sync.WaitGroup
	for _, each := range cases {
		all.Add(1)
		go func() {
			defer all.Done()
			show := func(id, kind, data string) {
				write(map[string]string{"case": each.Case, "id": id, "kind": kind, "data": data})
			}
			if err := clients[each.Client](context.Background(), each.URL, each.Cursor, show); err != nil {
				write(map[string]string{"case": each.Case, "failed": err.Error()})
			} else {
				write(map[string]string{"case": each.Case, "how": "ended"})
			}
		}()
	}
	all.Wait()
}
